//! Makes recordings of running VMs.
