//! downriver-service
