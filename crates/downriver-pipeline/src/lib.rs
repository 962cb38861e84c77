//! downriver-pipeline
