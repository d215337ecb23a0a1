//! One task per request. The HTTP/2 library gives its own future for every request to an executor; ours lets the service
//! put a future of its own beside it, in the same task: a second one would cost memory for each of many streams and a
//! way through the scheduler for each message. And what is beside a stream can end it, though the library would go on
//! waiting for a peer that does not read.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

/// What happens to a stream when the future beside it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It goes on to its own end.
    Well,
    /// It is given up: the peer is told by a reset, and its connection goes on.
    Cut,
}

type Beside = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// The task of one request; in the extensions of requests of the method that has many.
#[derive(Clone, Default)]
pub(crate) struct Task(Arc<Mutex<Option<Beside>>>);

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}

impl Task {
    /// Polls a future together with the stream, and drops it with the stream.
    pub(crate) fn beside(&self, future: impl Future<Output = Ended> + Send + 'static) {
        *lock(&self.0) = Some(Box::pin(future));
    }
}

/// Spawns the futures of one connection.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    /// Of the request that was taken last: its future comes next.
    next: Arc<Mutex<Option<Task>>>,
}

impl Tasks {
    /// The future that is spawned next gets this.
    pub(super) fn expect(&self, task: Task) {
        *lock(&self.next) = Some(task);
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        match lock(&self.next).take() {
            None => drop(tokio::spawn(stream)),
            Some(task) => drop(tokio::spawn(Both { stream, beside: None, task })),
        }
    }
}

pin_project! {
    struct Both<F> {
        #[pin]
        stream: F,
        beside: Option<Beside>,
        task: Task,
    }
}

impl<F: Future<Output = ()>> Future for Both<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            if let Some(beside) = this.beside {
                match beside.as_mut().poll(context) {
                    Poll::Ready(Ended::Cut) => return Poll::Ready(()),
                    Poll::Ready(Ended::Well) => *this.beside = None,
                    Poll::Pending => {}
                }
            }
            if this.stream.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let Some(new) = lock(&this.task.0).take() else { return Poll::Pending };
            *this.beside = Some(new);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
