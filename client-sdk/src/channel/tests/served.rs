//! Deadlines that travel: a server whose handler calls another one.

use lookaside_proto::demo::{
    EchoResponse, ExecutionsRequest, ExecutionsResponse,
    echo_server::{Echo, EchoServer},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Streaming, metadata::MetadataMap};

use super::*;
use crate::deadline;

/// Relays every call to the service behind it.
struct Relay(EchoClient<Channel>);

type Responses = Pin<Box<dyn futures_util::Stream<Item = Result<EchoResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Relay {
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        self.0.clone().unary(request.into_inner()).await
    }

    type ServerStreamStream = Responses;
    /// Calls while it sends its responses, not before.
    async fn server_stream(&self, _: Request<StreamRequest>) -> Result<Response<Responses>, Status> {
        let mut client = self.0.clone();
        let answer = async move { client.unary(EchoRequest::default()).await.map(Response::into_inner) };
        Ok(Response::new(Box::pin(futures_util::stream::once(answer))))
    }

    async fn client_stream(&self, _: Request<Streaming<EchoRequest>>) -> Result<Response<EchoResponse>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    type BothStreamStream = Responses;
    async fn both_stream(&self, _: Request<Streaming<EchoRequest>>) -> Result<Response<Responses>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    async fn executions(&self, _: Request<ExecutionsRequest>) -> Result<Response<ExecutionsResponse>, Status> {
        Err(Status::unimplemented("not in tests"))
    }
}

async fn relay(to: &Backend) -> EchoClient<tonic::transport::Channel> {
    let (_, client) = client(fixed(&[&to.address]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server =
        tonic::transport::Server::builder().layer(deadline::layer()).add_service(EchoServer::new(Relay(client)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    EchoClient::connect(format!("http://{address}")).await.unwrap()
}

/// What the last call had left, milliseconds.
fn left_ms(headers: &[MetadataMap]) -> Option<u128> {
    let timeout = headers.last().unwrap().get("grpc-timeout")?;
    crate::deadlines::parse_timeout(timeout.as_bytes()).map(|left| left.as_millis())
}

#[tokio::test]
async fn a_call_made_for_another_has_the_time_that_is_left_of_it() {
    let backend = Backend::start().await;
    let mut client = relay(&backend).await;
    let limited = |request| {
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(20));
        request
    };
    client.unary(limited(says(b"x"))).await.unwrap();
    assert!(left_ms(&backend.seen()).is_some_and(|ms| (1..=20_000).contains(&ms)));
    let mut stream = Request::new(StreamRequest::default());
    stream.set_timeout(Duration::from_secs(20));
    let mut answers = client.server_stream(stream).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert!(left_ms(&backend.seen()).is_some_and(|ms| (1..=20_000).contains(&ms)), "{:?}", backend.seen().last());
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(left_ms(&backend.seen()), None, "no deadline, nothing to hand on");
    assert_eq!(deadline::remaining(), None);
}

#[tokio::test]
async fn a_call_for_which_no_time_is_left_is_not_sent() {
    let backend = Backend::start().await;
    let (_channel, mut client) = client(fixed(&[&backend.address]));
    client.unary(says(b"x")).await.unwrap();
    let status = deadline::within(Duration::ZERO, client.unary(says(b"x"))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(backend.seen().len(), 1);
}
