//! How the fabric reaches a machine's network namespace. What is absent: this package never reads Raft.
