"""The same load against a real etcd and raftkv, side by side: `make bench`. See README.md beside this file."""
