//! A server that answers its callers by calling another service: one channel, made once, shared by all requests. The caller's
//! deadline is passed on, so that nobody works for an answer that is no longer awaited.
//!
//! ```text
//! cargo run -p lookaside-sdk --example gateway -- 127.0.0.1:50050
//! ```

use std::{net::SocketAddr, time::Duration};

use lookaside_proto::demo::{
    EchoRequest, EchoResponse, ExecutionsRequest, ExecutionsResponse, StreamRequest,
    echo_client::EchoClient,
    echo_server::{Echo, EchoServer},
};
use lookaside_sdk::{Channel, why};
use tonic::{Request, Response, Status, Streaming, transport::Server};

struct Gateway {
    upstream: EchoClient<Channel>,
}

/// The request as it goes on: the same message, and what is left of the caller's time. (Its headers stay here: what to forward
/// is for each gateway to say.)
fn onwards<T>(request: Request<T>) -> Request<T> {
    let timeout = request.metadata().get("grpc-timeout").cloned();
    let mut onwards = Request::new(request.into_inner());
    match timeout {
        Some(timeout) => {
            onwards.metadata_mut().insert("grpc-timeout", timeout);
        }
        None => onwards.set_timeout(Duration::from_secs(2)),
    }
    onwards
}

/// What callers may see of a failure upstream: the code, not the addresses behind this gateway. Operators get those.
fn outwards(status: Status) -> Status {
    eprintln!("{} ({:?})", status.message(), why(&status));
    Status::new(status.code(), "the upstream service could not answer")
}

#[tonic::async_trait]
impl Echo for Gateway {
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        // A client is as cheap to clone as its channel.
        self.upstream.clone().unary(onwards(request)).await.map_err(outwards)
    }

    type ServerStreamStream = Streaming<EchoResponse>;
    async fn server_stream(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::ServerStreamStream>, Status> {
        self.upstream.clone().server_stream(onwards(request)).await.map_err(outwards)
    }

    async fn client_stream(&self, _: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        Err(Status::unimplemented("this gateway passes on unary calls and server streams"))
    }

    type BothStreamStream = Streaming<EchoResponse>;
    async fn both_stream(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BothStreamStream>, Status> {
        Err(Status::unimplemented("this gateway passes on unary calls and server streams"))
    }

    async fn executions(&self, request: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        self.upstream.clone().executions(onwards(request)).await.map_err(outwards)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen: SocketAddr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50050".to_owned()).parse()?;
    let upstream = EchoClient::new(Channel::from_env("greeter")?);
    println!("listening on {listen}");
    Server::builder().add_service(EchoServer::new(Gateway { upstream })).serve(listen).await?;
    Ok(())
}
