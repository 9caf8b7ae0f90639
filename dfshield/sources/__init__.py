"""Every way to a training set, and the file that holds one."""
