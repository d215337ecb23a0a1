//! The wire contract: what the `.proto` files say, as Rust types, and nothing else. The messages of the contract are
//! documented where they are defined, in `lookaside/v1/*.proto`.

#![allow(missing_docs, clippy::doc_markdown)]

/// `lookaside.v1`: picks, reports, probes, administration.
pub mod v1 {
    tonic::include_proto!("lookaside.v1");
}

/// `lookaside.demo.v1`: what demo backends serve.
pub mod demo {
    tonic::include_proto!("lookaside.demo.v1");
}

/// ORCA, the standard's load reports; package layout as in the standard, since the generated code refers to it.
pub mod xds {
    pub mod data {
        pub mod orca {
            pub mod v3 {
                tonic::include_proto!("xds.data.orca.v3");
            }
        }
    }
    pub mod service {
        pub mod orca {
            pub mod v3 {
                tonic::include_proto!("xds.service.orca.v3");
            }
        }
    }
}

/// Every message and service above as an encoded `FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
