"""raftctl: etcdctl's commands, flags, output and exit codes, for raftkv and etcd alike."""
