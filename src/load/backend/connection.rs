//! Connections that can be cut from outside, as death cuts them: a server that stops gracefully would say goodbye first.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::Either;
use futures_util::{Stream, StreamExt as _, stream};
use lookaside_sdk::tls::{self, Acceptor, Io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// After a failed accept (no file descriptors left, as a rule) trying again at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Connection {
    stream: Io,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Accepts until dropped, over TLS if that is given; `cut` ends the connections.
pub(crate) fn accept(
    listener: TcpListener,
    tls: Option<Acceptor>,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    match tls {
        None => Either::Left(plain(listener, cut)),
        Some(acceptor) => {
            let connection = move |stream| Connection { stream, cut: Box::pin(cut.clone().cancelled_owned()) };
            Either::Right(tls::incoming(listener, acceptor).map(move |accepted| accepted.map(&connection)))
        }
    }
}

fn plain(listener: TcpListener, cut: CancellationToken) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, cut), |(listener, cut)| async move {
        let accepted = match listener.accept().await {
            Ok((stream, _)) => {
                let cut = Box::pin(cut.clone().cancelled_owned());
                stream.set_nodelay(true).map(|()| Connection { stream: Io::Plain(stream), cut })
            }
            Err(error) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                Err(error)
            }
        };
        Some((accepted, (listener, cut)))
    })
}

impl Connection {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
