"""What `jaxmethods run` runs of KID: questions, teacher, students, the judge, all files."""
