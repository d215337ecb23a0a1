//! Many pick streams over few connections, from one process that does as little with what it receives as a client can: it looks
//! at the version of each list, notes the time, and acknowledges. A stream that ends is opened again.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hdrhistogram::Histogram;
use lookaside_proto::v1::{Ack, Hello, PickRequest, Subscribe, Version, pick_request::Kind};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Error, unix_us};

/// A stream that ended is opened again after this.
const REOPEN: Duration = Duration::from_millis(500);
/// How long all streams together may take to get their first list.
const READY_MAX: Duration = Duration::from_secs(120);
const DELAY_US_MAX: u64 = 600_000_000;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What to open.
#[derive(Debug, Clone)]
pub struct Config {
    /// Client listener of a balancer.
    pub address: String,
    /// The service to subscribe to.
    pub service: String,
    /// Connections.
    pub connections: usize,
    /// Streams on all of them together.
    pub streams: usize,
}

/// A change that clients are to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Lists from this sequence on show it.
    pub sequence: u64,
    /// When it was ordered, microseconds since 1970.
    pub at_us: u64,
}

/// What the streams received of some changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Lists received since the last question.
    pub lists: u64,
    /// Their mean size.
    pub bytes_per_list: u64,
    /// Changes times streams of which nothing had come.
    pub missing: u64,
    /// Median time from the order to a stream.
    pub p50_us: u64,
    /// 99 % are faster.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// Streams that ended and were opened again.
    pub reopened: u64,
}

/// Streams that stay open until this is dropped.
#[derive(Debug)]
pub struct Subscribers {
    config: Config,
    senders: Vec<Sender>,
    seen: Vec<Arc<Mutex<Seen>>>,
    tasks: JoinSet<()>,
}

/// What one stream received.
#[derive(Debug, Default)]
struct Seen {
    /// Sequence and time of each list.
    lists: Vec<(u64, u64)>,
    bytes: u64,
    is_ready: bool,
    reopened: u64,
}

impl Subscribers {
    /// Makes all connections, with one stream each; returns when these have a list.
    ///
    /// # Errors
    /// When a connection cannot be made, or some streams get no list.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let connections = config.connections.min(config.streams);
        let mut all = Self { config, senders: Vec::new(), seen: Vec::new(), tasks: JoinSet::new() };
        for number in 0..connections {
            let sender = connect(&all.config.address, &mut all.tasks).await?;
            all.senders.push(sender);
            all.open(number);
        }
        all.wait().await?;
        Ok(all)
    }

    /// Opens all other streams; returns when every one has a list.
    ///
    /// # Errors
    /// When some streams get no list.
    pub async fn open_all(&mut self) -> Result<(), Error> {
        for number in self.seen.len()..self.config.streams {
            self.open(number);
        }
        self.wait().await
    }

    fn open(&mut self, number: usize) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        self.seen.push(seen.clone());
        let Some(sender) = self.senders.get(number % self.senders.len().max(1)).cloned() else { return };
        let (address, service) = (self.config.address.clone(), self.config.service.clone());
        self.tasks.spawn(async move {
            loop {
                let ended = stream(&address, &service, number, sender.clone(), &seen).await;
                tracing::debug!(?ended, number, "a stream ended");
                lock(&seen).reopened += 1;
                tokio::time::sleep(REOPEN).await;
            }
        });
    }

    async fn wait(&self) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let ready = self.seen.iter().filter(|seen| lock(seen).is_ready).count();
            if ready == self.seen.len() {
                return Ok(());
            }
            if started.elapsed() > READY_MAX {
                return Err(Error::Incomplete { what: "streams", ready, wanted: self.seen.len(), within: READY_MAX });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What came of these changes, given in their order; forgets what was received so far.
    pub fn told(&self, changes: &[Change]) -> Told {
        let mut told = Told::default();
        let mut delays = Histogram::<u64>::new_with_max(DELAY_US_MAX, 3).ok();
        let mut bytes = 0;
        for seen in &self.seen {
            let mut seen = lock(seen);
            bytes += std::mem::take(&mut seen.bytes);
            told.reopened += std::mem::take(&mut seen.reopened);
            let lists = std::mem::take(&mut seen.lists);
            told.lists += lists.len() as u64;
            let mut arrived = lists.iter().peekable();
            for change in changes {
                while arrived.next_if(|(sequence, _)| *sequence < change.sequence).is_some() {}
                match arrived.peek() {
                    None => told.missing += 1,
                    Some((_, at_us)) => {
                        let delay_us = at_us.saturating_sub(change.at_us);
                        delays.iter_mut().for_each(|all| all.saturating_record(delay_us));
                    }
                }
            }
        }
        let at = |quantile| delays.as_ref().map_or(0, |all| all.value_at_quantile(quantile));
        Told { bytes_per_list: bytes / told.lists.max(1), p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0), ..told }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

type Sender = h2::client::SendRequest<Bytes>;

async fn connect(address: &str, tasks: &mut JoinSet<()>) -> Result<Sender, Error> {
    let io = |error| Error::Io { what: format!("cannot connect to {address}"), error };
    let socket = TcpStream::connect(address).await.map_err(io)?;
    socket.set_nodelay(true).map_err(io)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(socket)
        .await
        .map_err(|error| Error::Http2 { what: "the handshake", error })?;
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "a connection of subscribers ended");
        }
    });
    Ok(sender)
}

/// One stream to its end.
async fn stream(
    address: &str,
    service: &str,
    number: usize,
    sender: Sender,
    seen: &Mutex<Seen>,
) -> Result<(), h2::Error> {
    let mut request = http::Request::new(());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = format!("http://{address}/lookaside.v1.Balancer/Pick").parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    let (response, mut out) = sender.ready().await?.send_request(request, false)?;
    let hello = Hello { client_id: format!("bench-{number}"), sdk: "lookaside-bench".to_owned(), ..Hello::default() };
    let mut words = framed(Kind::Hello(hello));
    words.extend_from_slice(&framed(Kind::Subscribe(Subscribe { service: service.to_owned() })));
    out.send_data(words.freeze(), false)?;
    let mut body = response.await?.into_body();
    let mut unread = BytesMut::new();
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        unread.extend_from_slice(&data);
        while let Some((version, bytes)) = next_message(&mut unread) {
            let Some(version) = version else { continue };
            {
                let mut seen = lock(seen);
                seen.lists.push((version.sequence, unix_us()));
                seen.bytes += bytes as u64;
                seen.is_ready = true;
            }
            let ack = Ack { service: service.to_owned(), version: Some(version), refused: String::new() };
            out.send_data(framed(Kind::Ack(ack)).freeze(), false)?;
        }
    }
    Ok(())
}

fn framed(kind: Kind) -> BytesMut {
    let message = PickRequest { kind: Some(kind) };
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    // The buffer grows as needed.
    let _ = message.encode(&mut frame);
    frame
}

/// As much of a `PickResponse` as is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    list: Option<List>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(message, optional, tag = "2")]
    version: Option<Version>,
}

/// Takes a whole message off: the version of the list that it is, if it is one, and its size.
fn next_message(unread: &mut BytesMut) -> Option<(Option<Version>, usize)> {
    let header = unread.get(..5)?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if unread.len() < 5 + length.min(MESSAGE_BYTES_MAX) {
        return None;
    }
    unread.advance(5);
    let message = unread.split_to(length.min(unread.len())).freeze();
    let response = Response::decode(message).unwrap_or_default();
    Some((response.list.and_then(|list| list.version), length))
}
