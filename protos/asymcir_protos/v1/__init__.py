"""Generated from retrieval.proto by `make proto`; do not edit the modules beside this one."""
