//! Endpoints over TLS: whose name is verified, and what becomes of one that shows another.

use std::{path::PathBuf, sync::atomic::AtomicUsize};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::*;
use crate::{
    Tls,
    testing::{Balancer, Seen, endpoint},
    tls::Acceptor,
};

const SOON: Duration = Duration::from_secs(10);

/// A CA, and files signed by it that are gone with it.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Ca {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lookaside-sdk-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(), folder }
    }

    /// Certificate and key for this name.
    fn sign(&self, name: &str) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let paths = ["crt", "key"].map(|end| self.folder.join(format!("{name}.{end}")));
        std::fs::write(&paths[0], certificate.pem()).unwrap();
        std::fs::write(&paths[1], key.serialize_pem()).unwrap();
        paths
    }

    fn acceptor(&self, name: &str) -> Acceptor {
        let [certificate, key] = self.sign(name);
        Acceptor::builder(certificate, key).build(name).unwrap()
    }

    fn tls(&self) -> Tls {
        Tls::builder().ca_pem(self.issuer.pem()).build().unwrap()
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn named(backend: &Backend, tls_name: &str) -> lookaside_proto::v1::Endpoint {
    lookaside_proto::v1::Endpoint { tls_name: tls_name.into(), ..endpoint(&backend.address, 100) }
}

fn list(endpoints: Vec<lookaside_proto::v1::Endpoint>) -> lookaside_proto::v1::List {
    lookaside_proto::v1::List { service: "echo".into(), complete: true, endpoints, ..Default::default() }
}

async fn connected(balancer: &Balancer, tls: Tls) -> (Channel, EchoClient<Channel>) {
    let builder = Channel::builder("echo").balancers([balancer.address()]).tls(tls);
    let channel = builder.connect().await.unwrap();
    (channel.clone(), EchoClient::new(channel))
}

#[tokio::test]
async fn an_endpoint_that_shows_another_name_is_never_called_and_the_balancer_is_told() {
    let (ca, balancer) = (Ca::new(), Balancer::start().await.unwrap());
    balancer.set_report_period(Duration::from_millis(100));
    let right = Backend::over_tls(ca.acceptor("greeter.example")).await;
    let wrong = Backend::over_tls(ca.acceptor("other.example")).await;
    balancer.set_list(list(vec![named(&right, "greeter.example"), named(&wrong, "greeter.example")]));
    let (channel, mut client) = connected(&balancer, ca.tls()).await;
    for _ in 0..100 {
        client.unary(says(b"x")).await.unwrap();
    }
    assert_eq!((right.counts.calls.load(SeqCst), wrong.counts.calls.load(SeqCst)), (100, 0));
    let because = "certificate is for other.example, the list says greeter.example";
    let told = |seen: &Seen| {
        let mut outcomes = seen.outcomes("echo").filter(|o| o.address == wrong.address);
        outcomes.any(|o| o.connect_failed > 0 && o.suspect && o.detail.contains(because))
    };
    assert!(balancer.wait_for(told, SOON).await, "{:?}", balancer.outcomes("echo"));

    // Nobody else to call: the caller is told why.
    balancer.set_list(list(vec![named(&wrong, "greeter.example")]));
    eventually("the right one is gone", || channel.snapshot().endpoints.len() == 1).await;
    let status = client.unary(says(b"x")).await.unwrap_err();
    assert!(status.message().contains(because), "{status}");
    assert_eq!(wrong.counts.calls.load(SeqCst), 0);

    // Mended in the list: the same address, another name, a new connection.
    balancer.set_list(list(vec![named(&wrong, "other.example")]));
    ready(&channel).await;
    client.unary(says(b"x")).await.unwrap();
    assert_eq!(wrong.counts.calls.load(SeqCst), 1);
}

#[tokio::test]
async fn without_a_name_in_the_list_the_host_of_the_address_is_verified() {
    let ca = Ca::new();
    let backend = Backend::over_tls(ca.acceptor("127.0.0.1")).await;
    let stranger = Backend::over_tls(ca.acceptor("10.0.0.1")).await;
    let (_channel, mut client) = client(fixed(&[&backend.address, &stranger.address]).tls(ca.tls()));
    for _ in 0..20 {
        client.unary(says(b"x")).await.unwrap();
    }
    assert_eq!((backend.counts.calls.load(SeqCst), stranger.counts.calls.load(SeqCst)), (20, 0));
}

#[tokio::test]
async fn a_backend_without_tls_and_one_of_another_ca_are_told_apart() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (plain, foreign) = (Backend::start().await, Backend::over_tls(other.acceptor("127.0.0.1")).await);
    for (backend, because) in [(&plain, "TLS"), (&foreign, "no CA that we were given has signed it")] {
        let (_channel, mut client) = client(fixed(&[&backend.address]).tls(ca.tls()));
        let status = client.unary(says(b"x")).await.unwrap_err();
        assert!(status.message().contains(because), "{status}");
        assert_eq!(backend.counts.calls.load(SeqCst), 0);
    }
}
