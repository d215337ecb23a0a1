use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::*;
use crate::testing::{PATIENCE, serve};

/// Health has what is needed here: a call that ends at once, and a stream that never does.
fn routes() -> Routes {
    Routes::new(tonic_health::server::health_reporter().1)
}

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
    async fn call(&mut self, method: &str) -> hyper::Result<http::Response<hyper::body::Incoming>> {
        let request = http::Request::post(format!("http://{}/grpc.health.v1.Health/{method}", self.address))
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
    assert!(first.call("Check").await.unwrap().status().is_success());
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
                if (Client { send, connection, address }).call("Check").await.is_ok() {
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
    let mut watch = client.call("Watch").await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().unwrap().is_data());
    // Told to go away: no new calls, within 10 % of the age.
    let refused = async {
        while client.send.ready().await.is_ok() && client.call("Check").await.is_ok() {
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
    let mut watch = client.call("Watch").await.unwrap().into_body();
    assert!(watch.frame().await.unwrap().unwrap().is_data());
    let began = Instant::now();
    stop.cancel();
    timeout(PATIENCE, async { while let Some(Ok(_)) = watch.frame().await {} }).await.expect("the stream ends");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(TcpStream::connect(address).await.is_err());
}
