"""What `jaxmethods run` runs of merging: the comparison on image tasks, the merge of folders."""
