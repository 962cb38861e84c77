//! downriver-cluster
