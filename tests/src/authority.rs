//! An authority that signs certificates, and servers that speak TLS with them.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::redis::RedisServer;

/// An authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// Makes one.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names, and its key.
    #[must_use]
    pub fn certificate(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().expect("a key");
        let subject = names.join(",");
        let mut params = CertificateParams::new(names).expect("good names");
        // A certificate named as its authority counts as self-signed.
        params.distinguished_name.push(DnType::CommonName, subject);
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Starts a server with a certificate for these names.
    #[must_use]
    pub fn server(&self, names: &[&str]) -> RedisServer {
        let (certificate, key) = self.certificate(names);
        RedisServer::start_tls(&certificate, &key, &self.pem())
    }

    /// Starts a server that asks clients for a certificate as well.
    #[must_use]
    pub fn mutual_server(&self, names: &[&str]) -> RedisServer {
        let (certificate, key) = self.certificate(names);
        RedisServer::start_mutual_tls(&certificate, &key, &self.pem())
    }
}
