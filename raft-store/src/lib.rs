//! The ledger: what must never disagree, kept by Raft. openraft's types stay inside this package.
