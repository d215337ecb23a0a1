//! A way to a balancer that a test opens and closes: what goes through it finds nobody while it is closed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A relay. Dropped, it is gone, and every connection through it with it.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens, `host:port`.
    pub address: String,
    open: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// An open one to this address.
    pub async fn to(address: &str) -> Self {
        let target: SocketAddr = address.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let open = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn(serve(listener, target, Arc::clone(&open)));
        Self { address, open, task }
    }

    /// Connections through it work from now on.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Connections made through it from now on are closed at once.
    pub fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, open: Arc<AtomicBool>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((mut near, _)) = listener.accept().await else { return };
        if !open.load(Ordering::SeqCst) {
            continue;
        }
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(target).await {
                // However it ends: both sides see it.
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
