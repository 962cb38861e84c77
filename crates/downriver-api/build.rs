//! Compiles `proto/` with protox: building Downriver needs no protoc.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message as _;

const FILES: [&str; 6] = [
    "downriver/log/v1/event.proto",
    "downriver/log/v1/log.proto",
    "downriver/admin/v1/admin.proto",
    "downriver/cluster/v1/cluster.proto",
    "downriver/cluster/v1/peer.proto",
    "downriver/cluster/v1/chunks.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
