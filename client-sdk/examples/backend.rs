//! A backend that makes itself known, says how loaded it is, and leaves without losing a call.
//!
//! ```sh
//! lookaside serve &
//! cargo run -p lookaside-sdk --features reporter --example backend -- 127.0.0.1:50051 127.0.0.1:7400
//! lookaside endpoints greeter
//! ```
//!
//! Ctrl-C or SIGTERM drains it: clients move on first, then the server stops.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use lookaside_proto::demo::echo_server::{Echo, EchoServer};
use lookaside_proto::demo::{EchoRequest, EchoResponse, ExecutionsRequest, ExecutionsResponse, StreamRequest};
use lookaside_sdk::{Reporter, asked_to_leave};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

struct EchoBackend {
    address: String,
}

type Responses = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

impl EchoBackend {
    fn answer(address: &str, payload: Vec<u8>, index: u64) -> EchoResponse {
        EchoResponse { payload, instance: address.to_owned(), index }
    }
}

#[tonic::async_trait]
impl Echo for EchoBackend {
    type ServerStreamStream = Responses;
    type BothStreamStream = Responses;

    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        Ok(Response::new(Self::answer(&self.address, request.into_inner().payload, 0)))
    }

    async fn server_stream(&self, request: Request<StreamRequest>) -> Result<Response<Responses>, Status> {
        let (address, count) = (self.address.clone(), request.into_inner().count);
        let answers = (0..count).map(move |index| Ok(Self::answer(&address, Vec::new(), index)));
        Ok(Response::new(Box::pin(futures_util::stream::iter(answers))))
    }

    async fn client_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        let mut requests = request.into_inner();
        let mut count = 0;
        while requests.message().await?.is_some() {
            count += 1;
        }
        Ok(Response::new(Self::answer(&self.address, Vec::new(), count)))
    }

    async fn both_stream(&self, request: Request<Streaming<EchoRequest>>) -> Result<Response<Responses>, Status> {
        let address = self.address.clone();
        let answers = request
            .into_inner()
            .enumerate()
            .map(move |(index, request)| request.map(|request| Self::answer(&address, request.payload, index as u64)));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn executions(&self, _: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        Err(Status::unimplemented("this backend keeps no books"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let balancer = arguments.next().unwrap_or_else(|| "127.0.0.1:7400".to_owned());

    let listener = TcpListener::bind(&listen).await?;
    let address = listener.local_addr()?.to_string();
    let reporter = Reporter::builder("greeter").balancers([&balancer]).advertise(&address).start().await?;
    println!("serving on {address}, reporting to {balancer}");

    let serving = Server::builder()
        .layer(reporter.layer())
        .add_service(reporter.health_service())
        .add_service(reporter.orca_service())
        .add_service(reporter.probe_service())
        .add_service(EchoServer::new(EchoBackend { address }))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            reporter.drained_on(asked_to_leave()),
        );
    tokio::select! {
        served = serving => served?,
        () = reporter.grace_over(Duration::from_secs(30)) => eprintln!("streams were still open"),
    }
    Ok(())
}
