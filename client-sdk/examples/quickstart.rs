//! A client in a few lines. Needs a balancer and backends:
//!
//! ```text
//! cargo run --release -- serve &
//! cargo run --release -- dev backend --service greeter --balancer 127.0.0.1:7400 --count 3 &
//! cargo run -p lookaside-sdk --example quickstart
//! ```
//!
//! It fails when a call does. Backends of the example `backend` will do as well, or no balancer at all:
//! `LOOKASIDE_TARGET=static://127.0.0.1:50051`.

use std::{collections::BTreeMap, process::ExitCode};

use lookaside_proto::demo::{EchoRequest, echo_client::EchoClient};
use lookaside_sdk::{Channel, picked, why};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let channel = Channel::from_env("greeter")?;
    let mut client = EchoClient::new(channel.clone());
    let mut calls: BTreeMap<String, u32> = BTreeMap::new();
    let mut exit = ExitCode::SUCCESS;
    for _ in 0..100 {
        match client.unary(EchoRequest { payload: b"hello".to_vec(), ..Default::default() }).await {
            Ok(reply) => {
                let endpoint = picked(&reply).map_or_else(|| "?".to_owned(), |p| p.address.to_string());
                *calls.entry(endpoint).or_default() += 1;
            }
            Err(status) => {
                eprintln!("{}", status.message());
                eprintln!("{:?}", why(&status));
                exit = ExitCode::FAILURE;
                break;
            }
        }
    }
    for (endpoint, calls) in calls {
        println!("{endpoint}  {calls} calls");
    }
    for endpoint in channel.snapshot().endpoints {
        println!("{}  weight {}  {:?}", endpoint.address, endpoint.weight, endpoint.state);
    }
    Ok(exit)
}
