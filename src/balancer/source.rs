//! What says which endpoints exist. A source tells facts and decides nothing: what it no longer names, or that it has
//! gone silent, is told as such, and what to do about it is the table's.

use tokio_util::sync::CancellationToken;

use crate::driver::Handle;

pub(crate) mod dns;
pub(crate) mod file;

/// Something that says which endpoints exist.
pub(crate) trait Source {
    /// Tells what it knows, and goes on until there is nothing more to tell or `stop` is cancelled.
    fn follow(self, driver: Handle, stop: CancellationToken) -> impl Future<Output = ()> + Send;
}
