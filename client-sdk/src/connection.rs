//! One HTTP/2 connection to one endpoint. It knows what was sent and what provably was not, how many streams the peer allows,
//! and says so the moment the peer is lost or says goodbye. It refuses to reconnect, to retry and to choose: see `endpoint`.
//!
//! Built on `h2` itself: a client library above it would hide why a stream was refused, the goodbye of an idle connection, and
//! leave half a stream behind when a call is dropped while its upload waits for window.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, client};
use tokio::sync::Notify;

use crate::{
    Tls,
    dial::{self, Io, dial},
    error::flatten,
};

/// Bytes a peer may send on one stream before they are read: what a stalled reader costs.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes a peer may send on the whole connection before they are read: 64 stalled streams do not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// What unread small frames may cost in bookkeeping before the peer is cut off as abusive. Backends are not strangers, and a
/// reader that stalls on small messages must not cost the other calls their connection.
const SMALL_FRAMES_BYTES: usize = 64 * 1024 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Cancelled streams whose late frames are expected.
const RESETS_REMEMBERED: usize = 1_024;
/// A connection with calls on it that has been this long without a ping gets one.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// An unanswered ping ends the connection after this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The peer's settings are looked for this often while a connection is made.
const SETTINGS_LOOK: Duration = Duration::from_millis(1);

/// Why no connection could be made.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Tcp(String),
    #[error("connected, but it does not speak HTTP/2: {0}")]
    NotHttp2(String),
    #[error("{0}")]
    Tls(String),
    /// It answers, and is not who it should be, or does not take us for who we are. It is not called.
    #[error("{0}")]
    Identity(String),
    #[error("no connection within {0} ms")]
    Timeout(u128),
}

impl From<&dial::Error> for ConnectError {
    fn from(error: &dial::Error) -> Self {
        match error {
            dial::Error::NotHttp2 => Self::NotHttp2(error.to_string()),
            dial::Error::Tcp(_) => Self::Tcp(error.to_string()),
            dial::Error::WrongName { presented, expected } => {
                Self::Identity(format!("certificate is for {presented}, the list says {expected}"))
            }
            _ if error.is_about_identity() => Self::Identity(error.to_string()),
            _ => Self::Tls(error.to_string()),
        }
    }
}

/// How a connection came to take no further calls.
#[derive(Debug, Clone)]
pub(crate) struct Goodbye {
    /// The peer announced it in good order; calls in flight may finish.
    pub(crate) graceful: bool,
    pub(crate) reason: String,
}

/// A connection in use. Calls hold it through their [`Slot`]; when nobody holds it any more it closes, calls in flight first.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: client::SendRequest<Bytes>,
    streams: AtomicUsize,
    over: AtomicBool,
    goodbye: OnceLock<Goodbye>,
    retire: Arc<Notify>,
}

impl Connection {
    /// Connects, over TLS to a peer that has to show the name beside it, and waits until the peer has said how many streams it takes. `on_goodbye` runs once, when the connection takes
    /// no further calls; not when it was retired from this side.
    pub(crate) async fn open(
        address: &str,
        tls: Option<(&Tls, &str)>,
        timeout: Duration,
        on_goodbye: impl FnOnce(&Arc<Connection>) + Send + 'static,
    ) -> Result<Arc<Self>, ConnectError> {
        match tokio::time::timeout(timeout, Self::open_unbounded(address, tls, on_goodbye)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Timeout(timeout.as_millis())),
        }
    }

    async fn open_unbounded(
        address: &str,
        tls: Option<(&Tls, &str)>,
        on_goodbye: impl FnOnce(&Arc<Connection>) + Send + 'static,
    ) -> Result<Arc<Self>, ConnectError> {
        let socket = dial(address, tls).await.map_err(|e| ConnectError::from(&e))?;
        let (sender, mut h2) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .data_frame_budget(SMALL_FRAMES_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .enable_push(false)
            // Frames that were under way when a caller dropped its response, and past those remembered, are answered by a
            // reset. The library would cut the connection after 1,024 of these in its whole life; 10,000 dropped responses
            // cut it ten times. The peer costs us no more than it sends.
            .max_local_error_reset_streams(None)
            // None until the peer's settings are here: a peer that takes one stream must not be sent a hundred.
            .initial_max_send_streams(0)
            .handshake(socket)
            .await
            .map_err(|e| ConnectError::NotHttp2(flatten(&e)))?;
        let pings = h2.ping_pong();
        let mut look = tokio::time::interval(SETTINGS_LOOK);
        let mut h2 = Box::pin(h2);
        while sender.current_max_send_streams() == 0 {
            tokio::select! {
                end = &mut h2 => return Err(not_http2(end.err())),
                _ = look.tick() => {}
            }
        }
        let connection = Arc::new(Self {
            sender,
            streams: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            goodbye: OnceLock::new(),
            retire: Arc::new(Notify::new()),
        });
        tokio::spawn(drive(h2, pings, connection.clone(), on_goodbye));
        Ok(connection)
    }

    /// Room for one call, or `None` while the peer takes no more or the connection is over.
    pub(crate) fn slot(self: &Arc<Self>) -> Option<Slot> {
        self.slot_of(self.sender.current_max_send_streams())
    }

    /// The same where at least half of the room is left.
    pub(crate) fn spare_slot(self: &Arc<Self>) -> Option<Slot> {
        self.slot_of(self.sender.current_max_send_streams() / 2)
    }

    fn slot_of(self: &Arc<Self>, limit: usize) -> Option<Slot> {
        if self.over.load(Relaxed) {
            return None;
        }
        self.streams.fetch_update(Relaxed, Relaxed, |n| (n < limit).then_some(n + 1)).ok()?;
        Some(Slot { connection: self.clone() })
    }

    /// Takes no further calls; closes when those in flight have ended.
    pub(crate) fn retire(&self) {
        self.over.store(true, Relaxed);
        self.retire.notify_one();
    }

    /// Why it is over, once it is.
    pub(crate) fn goodbye(&self) -> Option<&Goodbye> {
        self.goodbye.get()
    }

    fn say_goodbye(self: &Arc<Self>, goodbye: Goodbye, tell: Option<impl FnOnce(&Arc<Connection>)>) {
        let was_over = self.over.swap(true, Relaxed);
        let _ = self.goodbye.set(goodbye);
        if let Some(tell) = tell.filter(|_| !was_over) {
            tell(self);
        }
    }
}

impl Drop for Connection {
    /// Whoever moves its frames holds it open until told.
    fn drop(&mut self) {
        self.retire.notify_one();
    }
}

/// Room for one call on a connection, until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    connection: Arc<Connection>,
}

impl Slot {
    /// Opens a stream. An error means that nothing was sent.
    pub(crate) fn send(
        &self,
        head: http::Request<()>,
    ) -> Result<(client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        self.connection.sender.clone().send_request(head, false)
    }

    /// Why the connection is over, once it is.
    pub(crate) fn goodbye(&self) -> Option<&Goodbye> {
        self.connection.goodbye()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Relaxed);
    }
}

type H2 = client::Connection<Io, Bytes>;

/// Moves frames until the connection ends, and tells at once when it takes no further calls.
async fn drive(
    mut h2: std::pin::Pin<Box<H2>>,
    pings: Option<PingPong>,
    connection: Arc<Connection>,
    on_goodbye: impl FnOnce(&Arc<Connection>) + Send + 'static,
) {
    let retire = connection.retire.clone();
    let shared = Arc::downgrade(&connection);
    let mut probe = Some(connection.sender.clone());
    let mut on_goodbye = Some(on_goodbye);
    // From here on the endpoint and its calls alone hold the connection: when they let go, it closes.
    drop(connection);
    let mut retired = pin!(retire.notified());
    let mut dead = pin!(keep_alive(pings, shared.clone()));
    let end = poll_fn(|cx| {
        if probe.is_some() && retired.as_mut().poll(cx).is_ready() {
            probe = None;
        }
        if dead.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(format!("no answer to a keep-alive ping within {PING_TIMEOUT:?}")));
        }
        let polled = h2.as_mut().poll(cx);
        // h2 wakes nobody for a goodbye on an idle connection; asking after each batch of frames finds it.
        if let Some(Poll::Ready(Err(error))) = probe.as_mut().map(|p| p.poll_ready(cx)) {
            probe = None;
            if let Some(connection) = shared.upgrade() {
                let graceful = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
                connection.say_goodbye(Goodbye { graceful, reason: flatten(&error) }, on_goodbye.take());
            }
        }
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(None),
            Poll::Ready(Err(error)) => Poll::Ready(Some(flatten(&error))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    if let Some(connection) = shared.upgrade() {
        let reason = end.unwrap_or_else(|| "closed by the peer".to_owned());
        connection.say_goodbye(Goodbye { graceful: false, reason }, on_goodbye.take());
    }
}

/// Ends when a ping stays unanswered. Without calls it stays quiet: pings on an idle connection are an offence to some servers.
async fn keep_alive(pings: Option<PingPong>, connection: std::sync::Weak<Connection>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        let busy = connection.upgrade().is_none_or(|c| c.streams.load(Relaxed) > 0);
        if !busy {
            continue;
        }
        match tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection's own end says more than the ping's.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

fn not_http2(error: Option<h2::Error>) -> ConnectError {
    match error {
        Some(error) if error.is_io() => match error.get_io().and_then(tls_error) {
            Some(error) => ConnectError::from(error),
            None => ConnectError::Tcp(flatten(&error)),
        },
        // An HTTP/1 answer reads as a frame of absurd size.
        Some(error) => ConnectError::NotHttp2(flatten(&error)),
        None => ConnectError::Tcp("closed by the peer before a word".to_owned()),
    }
}

/// What TLS had to say: with TLS 1.3 a peer refuses a client certificate only after the handshake.
fn tls_error(error: &io::Error) -> Option<&dial::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_holds_is_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            h2::server::handshake(socket).await.unwrap().accept().await.is_none()
        });
        let patience = Duration::from_secs(5);
        drop(Connection::open(&address, None, patience, |_| {}).await.unwrap());
        assert!(tokio::time::timeout(patience, serve).await.expect("closed").unwrap());
    }
}
