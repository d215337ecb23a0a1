use std::{
    future::{Ready, ready},
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_stream::StreamExt as _;
use tonic::{body::Body, server::NamedService};

use super::*;
use crate::{
    limits::{HANDSHAKES_PER_PEER_MAX, OTHER_STREAMS_MAX, PUSHBACK},
    testing::{PATIENCE, serve},
};

/// Health has calls that end at once and a stream that never does; the other one does not end with its connection.
fn routes() -> Routes {
    Routes::new(tonic_health::server::health_reporter().1).add_service(Forever)
}

/// One frame, and no end.
#[derive(Clone)]
struct Forever;

impl NamedService for Forever {
    const NAME: &'static str = "test.Forever";
}

impl tower::Service<http::Request<Body>> for Forever {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let first = tokio_stream::once(Ok::<_, Status>(hyper::body::Frame::data(Bytes::from_static(&[0; 5]))));
        ready(Ok(http::Response::new(Body::new(StreamBody::new(first.chain(tokio_stream::pending()))))))
    }
}

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const FOREVER: &str = "/test.Forever/Watch";

async fn raw(limits: Limits) -> (SocketAddr, CancellationToken) {
    let stop = CancellationToken::new();
    (serve(routes(), limits, &stop).await, stop)
}

/// Waits until the peer closes, and gives what it sent before.
async fn closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut sent = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut sent)).await.expect("the connection is closed");
    // A reset closes as well.
    let _ = read;
    sent
}

struct Client {
    send: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<hyper::Result<()>>,
    address: SocketAddr,
}

async fn client(address: SocketAddr) -> Client {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    Client { send, connection: tokio::spawn(connection), address }
}

impl Client {
    async fn call(&mut self, path: &str) -> hyper::Result<http::Response<hyper::body::Incoming>> {
        let request = http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            // An empty message: the health of the server as a whole.
            .body(Full::new(Bytes::from_static(&[0; 5])))
            .unwrap();
        self.send.send_request(request).await
    }
}

#[tokio::test]
async fn who_says_nothing_is_cut_at_the_deadline() {
    let limits = Limits { handshake_deadline: Duration::from_millis(200), ..Limits::default() };
    let (address, _stop) = raw(limits).await;
    let began = Instant::now();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&PREFACE[..10]).await.unwrap();
    assert!(closed(&mut silent).await.is_empty());
    assert!(closed(&mut slow).await.is_empty());
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn who_speaks_something_else_is_cut_at_once() {
    let (address, _stop) = raw(Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(closed(&mut stream).await.is_empty());
}

#[tokio::test]
async fn above_the_cap_connections_are_closed_at_once_and_below_it_served_again() {
    let (address, _stop) = raw(Limits { connections: 1, ..Limits::default() }).await;
    let mut first = client(address).await;
    assert!(first.call(CHECK).await.unwrap().status().is_success());
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(PREFACE).await.unwrap();
    assert!(closed(&mut second).await.is_empty());
    drop(first.send);
    first.connection.await.unwrap().unwrap();
    let again = async {
        loop {
            // The slot is free a moment after the connection has ended.
            let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
            if let Ok((send, connection)) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await {
                let connection = tokio::spawn(connection);
                if (Client { send, connection, address }).call(CHECK).await.is_ok() {
                    return;
                }
            }
        }
    };
    timeout(PATIENCE, again).await.expect("the slot is free again");
}

#[tokio::test]
async fn an_old_connection_is_told_to_go_away_and_its_streams_have_the_grace_to_end() {
    let limits = Limits {
        connection_age: Duration::from_millis(300),
        connection_age_grace: Duration::from_millis(700),
        ..Limits::default()
    };
    let (address, _stop) = raw(limits).await;
    let mut client = client(address).await;
    let began = Instant::now();
    let mut watch = client.call(FOREVER).await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().unwrap().is_data());
    // Told to go away: no new calls, within 10 % of the age.
    let refused = async {
        while client.send.ready().await.is_ok() && client.call(CHECK).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("new calls end with the age");
    let told = began.elapsed();
    assert!(told >= Duration::from_millis(270), "{told:?}");
    // The stream goes on, and is cut after the grace.
    let end = timeout(PATIENCE, async { while let Some(Ok(_)) = watch.frame().await {} }).await;
    end.expect("the stream ends");
    assert!(began.elapsed() >= Duration::from_millis(270 + 700), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stop_closes_the_listener_and_lets_calls_end_within_the_deadline() {
    let limits = Limits { drain_deadline: Duration::from_millis(300), ..Limits::default() };
    let (address, stop) = raw(limits).await;
    let mut client = client(address).await;
    let mut watch = client.call(FOREVER).await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().unwrap().is_data());
    let began = Instant::now();
    stop.cancel();
    timeout(PATIENCE, async { while let Some(Ok(_)) = watch.frame().await {} }).await.expect("the stream ends");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_watch_of_health_ends_with_its_connection_and_does_not_hold_up_the_end_of_the_balancer() {
    let (address, stop) = raw(Limits::default()).await;
    let mut client = client(address).await;
    let mut watch = client.call(WATCH).await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().unwrap().is_data());
    stop.cancel();
    let end = async {
        let frame = watch.frame().await.unwrap().unwrap();
        assert_eq!(frame.trailers_ref().unwrap()["grpc-status"], "14");
        drop(client.send);
        client.connection.await.unwrap().unwrap();
    };
    timeout(Limits::default().drain_deadline / 2, end).await.expect("the stream ends, and the connection");
}

#[tokio::test]
async fn who_never_asks_is_told_to_go_away_at_the_deadline_and_cut() {
    let limits = Limits { handshake_deadline: Duration::from_millis(200), ..Limits::default() };
    let (address, _stop) = raw(limits).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(PREFACE).await.unwrap();
    // Settings, and nothing else.
    silent.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let said = closed(&mut silent).await;
    let goaway = said.windows(9).any(|head| head[..4] == [0, 0, 8, 7]);
    assert!(goaway, "{said:?}");
    let mut asking = client(address).await;
    assert!(asking.call(CHECK).await.unwrap().status().is_success());
    tokio::time::sleep(limits.handshake_deadline * 2).await;
    assert!(asking.call(CHECK).await.unwrap().status().is_success(), "who asked in time stays");
}

#[tokio::test]
async fn a_connection_without_streams_is_told_to_go_away_and_one_with_a_stream_is_not() {
    let limits = Limits { connection_idle: Duration::from_millis(300), ..Limits::default() };
    let (address, _stop) = raw(limits).await;
    let (mut idle, mut busy) = (client(address).await, client(address).await);
    assert!(idle.call(CHECK).await.unwrap().status().is_success());
    let mut watch = busy.call(FOREVER).await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().unwrap().is_data());
    timeout(PATIENCE, idle.connection).await.expect("the idle connection ends").unwrap().unwrap();
    assert!(busy.call(CHECK).await.unwrap().status().is_success());
}

#[tokio::test]
async fn above_the_caps_of_streams_a_request_is_refused_and_told_when_to_come_back() {
    let limits = Limits { streams_per_peer: OTHER_STREAMS_MAX + 1, ..Limits::default() };
    let (address, _stop) = raw(limits).await;
    let (mut one, mut two) = (client(address).await, client(address).await);
    let mut open = Vec::new();
    for _ in 0..OTHER_STREAMS_MAX {
        open.push(one.call(FOREVER).await.unwrap());
    }
    let refused = |response: http::Response<hyper::body::Incoming>| {
        let back_ms: u128 = response.headers()["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
        assert!((PUSHBACK.start.as_millis()..=PUSHBACK.end.as_millis()).contains(&back_ms));
        response.headers()["grpc-status"] == "8"
    };
    assert!(refused(one.call(FOREVER).await.unwrap()), "the connection has all it may have");
    open.push(two.call(FOREVER).await.unwrap());
    assert!(refused(two.call(CHECK).await.unwrap()), "the peer has all it may have");
    open.clear();
    let again = async {
        while two.call(CHECK).await.unwrap().headers().contains_key("grpc-retry-pushback-ms") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("there is room again");
}

#[tokio::test]
async fn handshakes_of_one_peer_wait_for_each_other_and_are_given_up_at_the_deadline() {
    let limits = Limits { handshake_deadline: Duration::from_secs(1), ..Limits::default() };
    let (address, _stop) = raw(limits).await;
    let mut silent = Vec::new();
    for _ in 0..2 * HANDSHAKES_PER_PEER_MAX {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // All are gone after two deadlines: those that were in their handshake, and those that waited for it.
    for stream in &mut silent {
        assert!(closed(stream).await.is_empty());
    }
    assert!(client(address).await.call(CHECK).await.unwrap().status().is_success());
}

#[tokio::test]
async fn a_request_that_does_not_come_to_its_end_is_ended() {
    let (address, _stop) = raw(Limits::default()).await;
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let never = StreamBody::new(tokio_stream::pending::<Result<hyper::body::Frame<Bytes>, Infallible>>());
    let request = http::Request::post(format!("http://{address}{CHECK}")).header("content-type", "application/grpc");
    let answer = send.send_request(request.body(never).unwrap());
    let answer = timeout(REQUEST_WAIT_MAX + PATIENCE, answer).await.expect("an answer").unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
}
