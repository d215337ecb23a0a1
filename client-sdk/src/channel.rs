//! The channel as applications see it: how it is made, and how a generated client uses it. Everything it does is done elsewhere.

mod builder;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};

pub use builder::{Builder, CACHE_DIR_VARIABLE};

use crate::{
    Error, Snapshot,
    call::{self, Settings},
    pool::Pool,
    target::{self, Target},
};

/// The environment variable that names the target of [`Channel::from_env`].
pub const TARGET_VARIABLE: &str = "LOOKASIDE_TARGET";
const TARGET_DEFAULT: &str = "lookaside://127.0.0.1:7400";

/// A balanced drop-in for a tonic `Channel`: hand it to any tonic 0.14 generated client. Cheap to clone; clones share
/// connections and lists. When the last one is dropped, connections close as their calls end.
///
/// Every call goes straight to an endpoint of the service's list. Failures are `tonic::Status` that name the endpoint, the
/// reason and the command that explains it; see [`crate::why`].
#[derive(Debug, Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: Arc<Pool>,
    settings: Settings,
    stop: CancellationToken,
    lists: watch::Receiver<u64>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
        self.pool.close();
    }
}

impl Channel {
    /// Starts to build a channel to the service of this name.
    pub fn builder(service: impl Into<String>) -> Builder {
        Builder::new(service.into())
    }

    /// Connects to a target such as `lookaside://127.0.0.1:7400/greeter`, or with several balancers
    /// `lookaside://lb-0:7400,lb-1:7400/greeter`; a name stands for all its addresses. Waits up to 2 s for the first list.
    ///
    /// # Errors
    /// When the target is not understood, or no balancer answered in that time.
    pub async fn connect(target: &str) -> Result<Self, Error> {
        let parsed = target::parse(target)?;
        let (Target::Balancers { service, .. } | Target::Static { service, .. }) = &parsed;
        let Some(service) = service.clone() else {
            return Err(Error::Target { target: target.to_owned(), reason: "it names no service".to_owned() });
        };
        Builder::new(service).target(parsed).connect().await
    }

    /// A channel to what `LOOKASIDE_TARGET` says: `lookaside://host:port[,host:port]/`, or `static://a:1,b:2` for a laptop
    /// without a balancer. Not set, it is the balancer on this machine, `lookaside://127.0.0.1:7400`. Connects in the background.
    ///
    /// # Errors
    /// When the variable is not understood, or outside of a tokio runtime.
    pub fn from_env(service: &str) -> Result<Self, Error> {
        let target = std::env::var(TARGET_VARIABLE).ok().filter(|t| !t.trim().is_empty());
        let target = target::parse(target.as_deref().unwrap_or(TARGET_DEFAULT))?.of_service(service)?;
        Builder::new(service.to_owned()).target(target).lazy()
    }

    /// What the channel holds now.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.pool.snapshot()
    }

    /// Resolves when the list next changes, after this was called. Never, once the channel's list can change no more.
    pub async fn changed(&self) {
        let mut lists = self.inner.lists.clone();
        lists.mark_unchanged();
        if lists.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// Always ready: calls wait, if they must, each within its own deadline.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // A call that still looks for its endpoint keeps the channel alive: whoever drops it right after has asked all the same.
        let channel = self.inner.clone();
        Box::pin(async move { call::run(&channel.pool, &channel.settings, request).await })
    }
}

#[cfg(test)]
mod tests;
