"""NoVo."""
