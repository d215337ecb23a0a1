//! Compiles the contract with a pure-Rust compiler: a fresh clone needs no `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 9] = [
    "lookaside/v1/common.proto",
    "lookaside/v1/pick.proto",
    "lookaside/v1/cache.proto",
    "lookaside/v1/report.proto",
    "lookaside/v1/probe.proto",
    "lookaside/v1/admin.proto",
    "lookaside/v1/demo.proto",
    "xds/data/orca/v3/orca_load_report.proto",
    "xds/service/orca/v3/orca.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Lists are hashed and compared: maps must have one order.
        .btree_map(".")
        .compile_fds(descriptors)?;
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    Ok(())
}
