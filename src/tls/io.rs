//! A connection, plain or over TLS. Errors of TLS come out in our words.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use crate::Error;

/// A connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Io {
    /// Everybody on the way reads along.
    Plain(TcpStream),
    /// Nobody does.
    Tls(Box<Secured>),
}

/// A connection over TLS, after its handshake.
#[derive(Debug)]
pub struct Secured {
    stream: TlsStream<TcpStream>,
    trouble: Trouble,
}

/// What TLS had to say of a connection that broke. Whoever uses the connection through a library often hears no more than
/// that it is gone.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<OnceLock<String>>);

impl Trouble {
    /// In our words; `None` when TLS had nothing to say.
    pub fn said(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    pub(crate) fn say(&self, error: &Error) {
        // The first word is the cause, and the others what came of it.
        let _ = self.0.set(error.to_string());
    }
}

impl Secured {
    fn translate<T>(trouble: &Trouble, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| Error::of_connection(error, trouble))
    }
}

impl Io {
    pub(crate) fn secured(stream: impl Into<TlsStream<TcpStream>>, trouble: Trouble) -> Self {
        Self::Tls(Box::new(Secured { stream: stream.into(), trouble }))
    }

    /// The connection underneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(secured) => secured.stream.get_ref().0,
        }
    }

    /// Whether it is over TLS.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(_) => true,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(secured) => {
                let Secured { stream, trouble } = secured.as_mut();
                match Pin::new(stream).poll_read(cx, buffer) {
                    // A peer that is gone says no goodbye. HTTP/2 counts what it reads by itself: nothing is cut unseen.
                    Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                    polled => Secured::translate(trouble, polled),
                }
            }
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(secured) => {
                let Secured { stream, trouble } = secured.as_mut();
                Secured::translate(trouble, Pin::new(stream).poll_write(cx, bytes))
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(secured) => {
                let Secured { stream, trouble } = secured.as_mut();
                Secured::translate(trouble, Pin::new(stream).poll_write_vectored(cx, parts))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(secured) => secured.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(secured) => {
                let Secured { stream, trouble } = secured.as_mut();
                Secured::translate(trouble, Pin::new(stream).poll_flush(cx))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(secured) => {
                let Secured { stream, trouble } = secured.as_mut();
                Secured::translate(trouble, Pin::new(stream).poll_shutdown(cx))
            }
        }
    }
}
