//! The generated gRPC types of `proto/`: the admin and log services, the event log's stored messages and
//! what Raft replicates; and how a server is reached. Nothing is decided here.

#![allow(clippy::all, unused_qualifications, unreachable_pub)]

pub mod connect;

pub mod log {
    pub mod v1 {
        tonic::include_proto!("downriver.log.v1");
    }
}

pub mod admin {
    pub mod v1 {
        tonic::include_proto!("downriver.admin.v1");
    }
}

pub mod cluster {
    pub mod v1 {
        tonic::include_proto!("downriver.cluster.v1");
    }
}

/// All files of `proto/` as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
