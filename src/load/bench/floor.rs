//! What pushing a list costs at the least that tonic's own streams allow: a server without a balancer behind it. It keeps one
//! list, and every stream sends it whenever it is called by a new version.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use futures_util::{Stream, StreamExt as _};
use lookaside_proto::v1::balancer_server::{Balancer, BalancerServer};
use lookaside_proto::v1::{List, PickRequest, PickResponse, Version, pick_response::Kind};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::subscribers::Change;
use super::{Error, unix_us};

/// A server of one list.
#[derive(Debug)]
pub struct Floor {
    /// Where it listens.
    pub address: String,
    list: Mutex<List>,
    pushed: watch::Sender<PickResponse>,
}

impl Floor {
    /// Serves this list on loopback for as long as the process lives.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn serve(list: List) -> Result<Self, Error> {
        let io = |error| Error::Io { what: "cannot listen on 127.0.0.1".to_owned(), error };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?.to_string();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let pushed = watch::Sender::new(PickResponse { kind: Some(Kind::List(list.clone())) });
        let service = BalancerServer::new(Streams(pushed.clone()));
        tokio::spawn(async move {
            if let Err(error) = Server::builder().add_service(service).serve_with_incoming(incoming).await {
                tracing::error!(%error, "the bare server ended");
            }
        });
        Ok(Self { address, list: Mutex::new(list), pushed })
    }

    /// Sends the list once more to everybody, under its next version.
    pub fn push(&self) -> Change {
        let at_us = unix_us();
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let Version { epoch, sequence } = list.version.unwrap_or_default();
        list.version = Some(Version { epoch, sequence: sequence + 1 });
        self.pushed.send_replace(PickResponse { kind: Some(Kind::List(list.clone())) });
        Change { sequence: sequence + 1, at_us }
    }
}

struct Streams(watch::Sender<PickResponse>);

#[tonic::async_trait]
impl Balancer for Streams {
    type PickStream = Pin<Box<dyn Stream<Item = Result<PickResponse, Status>> + Send>>;

    async fn pick(&self, request: Request<Streaming<PickRequest>>) -> Result<Response<Self::PickStream>, Status> {
        let mut requests = request.into_inner();
        tokio::spawn(async move { while let Ok(Some(_)) = requests.message().await {} });
        Ok(Response::new(Box::pin(WatchStream::new(self.0.subscribe()).map(Ok))))
    }
}
