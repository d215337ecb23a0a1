//! Between the task that reads a stream and the one that acts on it: the newest of each kind, never a queue. HTTP/2 cuts
//! a connection with many small frames unread, so reading must never wait for acting.

use std::sync::{Mutex, PoisonError};

use lookaside_core::event::{LoadReport, Override};
use tokio::sync::Notify;
use tonic::Status;

use super::parse::Registration;

/// What one message came to.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) registration: Option<Registration>,
    pub(super) load: Option<LoadReport>,
    pub(super) overrides: Option<Vec<Override>>,
    pub(super) draining: bool,
    /// A later message was refused; the stream goes on.
    pub(super) refused: Option<Status>,
    /// Nothing will follow.
    pub(super) end: Option<End>,
}

/// How a stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// By the backend, or because the connection broke: which one it was is told by whether it drained before.
    Gone,
    /// By the balancer, with this status.
    Refused(Status),
}

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    news: Mutex<News>,
    filled: Notify,
}

impl Mailbox {
    /// Adds a message to those not taken yet; what it repeats, it replaces.
    pub(super) fn put(&self, message: News) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        *news = News {
            registration: message.registration.or(news.registration.take()),
            load: message.load.or(news.load),
            overrides: message.overrides.or(news.overrides.take()),
            draining: message.draining || news.draining,
            refused: message.refused.or(news.refused.take()),
            end: news.end.take().or(message.end),
        };
        drop(news);
        self.filled.notify_one();
    }

    /// Waits for news.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Everything since the last time.
    pub(super) fn take(&self) -> News {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
