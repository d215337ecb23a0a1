//! Connections over TLS as a tonic server wants them. A handshake that hangs or fails costs the others nothing.

use std::{io, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{Acceptor, Io};

/// A handshake that takes longer is given up.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Handshakes under way; a further connection waits in the kernel.
const HANDSHAKES_MAX: usize = 256;

/// After a failed accept (no file descriptors left, as a rule) trying again at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who a connection comes from, for `Request::remote_addr`.
impl Connected for Io {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.tcp().connect_info()
    }
}

/// Accepts connections and shakes hands, for as long as the stream is held: for tonic's `serve_with_incoming`. Must be
/// called within a tokio runtime.
pub fn incoming(listener: TcpListener, acceptor: Acceptor) -> impl Stream<Item = io::Result<Io>> + Send + Unpin {
    let (ready, connections) = mpsc::channel(1);
    tokio::spawn(accept(listener, acceptor, ready));
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, acceptor: Acceptor, ready: mpsc::Sender<io::Result<Io>>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            // Nobody serves any more: the port closes, and those who wait for a handshake are cut.
            () = ready.closed() => return,
            Some(ended) = handshakes.join_next() => {
                if let Ok(Some(connection)) = ended
                    && ready.send(Ok(connection)).await.is_err()
                {
                    return;
                }
            }
            accepted = listener.accept(), if handshakes.len() < HANDSHAKES_MAX => match accepted {
                Ok((stream, _)) => {
                    handshakes.spawn(shake_hands(stream, acceptor.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying on");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn shake_hands(stream: TcpStream, acceptor: Acceptor) -> Option<Io> {
    let peer = stream.peer_addr().ok();
    let shaken = async {
        stream.set_nodelay(true).map_err(crate::Error::Tcp)?;
        acceptor.accept(stream).await
    };
    match timeout(HANDSHAKE_DEADLINE, shaken).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::debug!(?peer, %error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(?peer, "a TLS handshake took too long");
            None
        }
    }
}
