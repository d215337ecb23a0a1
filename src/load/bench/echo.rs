//! Servers of `lookaside.demo.v1.Echo` that answer at once: what the calls of a benchmark should cost the client is not hidden
//! behind what they cost here.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::Empty;
use lookaside_proto::demo::echo_server::{Echo, EchoServer};
use lookaside_proto::demo::{EchoRequest, EchoResponse, ExecutionsRequest, ExecutionsResponse, StreamRequest};
use lookaside_sdk::Reporter;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::Error;
use crate::backend;

/// Starts so many on loopback, which serve until the process ends; their addresses. Those of a service say with every answer how
/// loaded they are, and answer questions about it, as its backends do, but tell no balancer.
///
/// # Errors
/// When no port is free.
pub async fn serve(count: usize, service: Option<&str>) -> Result<Vec<String>, Error> {
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let io = |error| Error::Io { what: "cannot listen on 127.0.0.1".to_owned(), error };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let reporter = match service {
            Some(service) => {
                let reporter = Reporter::builder(service).advertise(&address).measure_cpu(false);
                Some(reporter.start().await.map_err(backend::Error::from)?)
            }
            None => None,
        };
        addresses.push(address);
        tokio::spawn(async move {
            let served = match &reporter {
                Some(reporter) => {
                    let server = Server::builder().layer(reporter.layer()).add_service(reporter.probe_service());
                    server.add_service(EchoServer::new(AtOnce)).serve_with_incoming(incoming).await
                }
                None => Server::builder().add_service(EchoServer::new(AtOnce)).serve_with_incoming(incoming).await,
            };
            if let Err(error) = served {
                tracing::error!(%error, "an echo server ended");
            }
        });
    }
    Ok(addresses)
}

struct AtOnce;

fn unserved<T>() -> Result<T, Status> {
    Err(Status::unimplemented("this one serves Unary alone"))
}

#[tonic::async_trait]
impl Echo for AtOnce {
    type ServerStreamStream = Empty<Result<EchoResponse, Status>>;
    type BothStreamStream = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let payload = request.into_inner().payload;
        Ok(Response::new(EchoResponse { payload, ..EchoResponse::default() }))
    }

    async fn server_stream(&self, _: Request<StreamRequest>) -> Result<Response<Self::ServerStreamStream>, Status> {
        unserved()
    }

    async fn client_stream(&self, _: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        unserved()
    }

    async fn both_stream(
        &self,
        _: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::BothStreamStream>, Status> {
        unserved()
    }

    async fn executions(&self, _: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        unserved()
    }
}
