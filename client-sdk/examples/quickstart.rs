//! A client in a few lines. Needs a balancer and backends, which one command gives:
//!
//! ```text
//! cargo run --release -- serve
//! cargo run --release -- dev backend --service echo --balancer 127.0.0.1:7400 --count 3
//! cargo run -p lookaside-sdk --example quickstart
//! ```
//!
//! or no balancer at all: `LOOKASIDE_TARGET=static://127.0.0.1:50051`.

use std::collections::BTreeMap;

use lookaside_proto::demo::{EchoRequest, echo_client::EchoClient};
use lookaside_sdk::{Channel, picked, why};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let channel = Channel::from_env("echo")?;
    let mut client = EchoClient::new(channel.clone());
    let mut calls: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..100 {
        match client.unary(EchoRequest { payload: b"hello".to_vec(), ..Default::default() }).await {
            Ok(reply) => {
                let endpoint = picked(&reply).map_or_else(|| "?".to_owned(), |p| p.address.to_string());
                *calls.entry(endpoint).or_default() += 1;
            }
            Err(status) => {
                eprintln!("{}", status.message());
                eprintln!("{:?}", why(&status));
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
    Ok(())
}
