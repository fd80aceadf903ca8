//! Client addresses behind trusted proxies.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, header, request::Parts};
use ipnet::{IpNet, Ipv6Net};
use resilience_core::InvalidConfig;

/// Address of the client of a request.
///
/// It is the address of the connection's peer, unless the peer is a [trusted](Self::trust) proxy:
/// then it is the address that this proxy received the request from, as its header says, and so on
/// while that address is a trusted proxy too. The header is read from the right, where the nearest
/// proxy appends; whatever stands left of the first untrusted address may have been forged and is
/// ignored. By default no proxy is trusted, and no header is read.
///
/// The peer's address is taken from the request's extensions: a `SocketAddr`, or with the feature
/// `axum` also axum's `ConnectInfo<SocketAddr>` (serve with
/// `into_make_service_with_connect_info::<SocketAddr>()`).
///
/// ```
/// use std::net::{IpAddr, SocketAddr};
/// use resilience_http::server::ClientAddress;
///
/// let address = ClientAddress::new().trust(["10.0.0.0/8"])?;
/// let request = http::Request::get("/")
///     .extension(SocketAddr::from(([10, 0, 0, 1], 40_000)))
///     .header("x-forwarded-for", "8.8.8.8, 203.0.113.7, 10.0.0.2")
///     .body(()).unwrap();
/// let (head, ()) = request.into_parts();
/// assert_eq!(address.of(&head), Some(IpAddr::from([203, 0, 113, 7])));
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
///
/// A client whose IPv4 address a translator (NAT64) has put into an IPv6 address has the embedded IPv4
/// address. Translators that use the well-known prefix `64:ff9b::/96` are known,
/// [others](Self::nat64) have to be named.
///
/// # References
/// RFC 7239 (`Forwarded`); `X-Forwarded-For` as MDN documents it; RFC 6052 (addresses of translators),
/// section 2.2 for the places of the embedded address.
#[derive(Clone)]
#[must_use]
pub struct ClientAddress {
    trusted: Arc<[IpNet]>,
    translated: Arc<[Ipv6Net]>,
    header: Forwarding,
    peer: Option<Peer>,
}

/// The well-known prefix of translators (RFC 6052).
const WELL_KNOWN: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
/// Prefixes for translators within a network (RFC 8215): how long they are there is not known.
const LOCAL_USE: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48);

type Peer = Arc<dyn Fn(&Parts) -> Option<IpAddr> + Send + Sync>;

/// Header in which trusted proxies name the address that they received a request from. Only one is
/// read: a proxy that writes one and passes the other through would let clients forge the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarding {
    /// `X-Forwarded-For`: addresses, separated by commas.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239): its parameter `for`.
    Forwarded,
}

impl ClientAddress {
    /// Creates an address that trusts no proxy: that of the connection's peer.
    pub fn new() -> Self {
        Self {
            trusted: Arc::new([]),
            translated: Arc::new([WELL_KNOWN]),
            header: Forwarding::default(),
            peer: None,
        }
    }

    /// Trusts the proxies in these networks (`10.0.0.0/8`, `fd00::/8`, `192.0.2.7`), and no others.
    ///
    /// # Errors
    /// If one of them is neither a network nor an address.
    pub fn trust<N: AsRef<str>>(
        mut self,
        networks: impl IntoIterator<Item = N>,
    ) -> Result<Self, InvalidConfig> {
        let parsed = networks.into_iter().map(|network| {
            let text = network.as_ref();
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            let rule = "must be networks or addresses, like 10.0.0.0/8";
            text.parse()
                .or_else(|_| address())
                .map_err(|_| InvalidConfig::new("trust", text, rule))
        });
        self.trusted = parsed.collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Adds prefixes of translators (NAT64) that stand between clients and this server, such as
    /// `2001:db8:64::/96`: of an address with such a prefix, the embedded IPv4 address counts.
    ///
    /// # Errors
    /// If one of them is not a prefix of 32, 40, 48, 56, 64 or 96 bits.
    pub fn nat64<N: AsRef<str>>(
        mut self,
        prefixes: impl IntoIterator<Item = N>,
    ) -> Result<Self, InvalidConfig> {
        let mut all = self.translated.to_vec();
        for prefix in prefixes {
            let text = prefix.as_ref();
            let parsed: Option<Ipv6Net> = text.parse().ok();
            let possible = |prefix: &Ipv6Net| LENGTHS.contains(&prefix.prefix_len());
            let rule = "must be prefixes of 32, 40, 48, 56, 64 or 96 bits, like 2001:db8:64::/96";
            let prefix = parsed.filter(possible);
            all.push(prefix.ok_or_else(|| InvalidConfig::new("nat64", text, rule))?);
        }
        self.translated = all.into();
        Ok(self)
    }

    /// Sets the header that trusted proxies write. Default: `X-Forwarded-For`.
    pub const fn header(mut self, header: Forwarding) -> Self {
        self.header = header;
        self
    }

    /// Sets where the peer's address is taken from. Default: the request's extensions.
    pub fn peer(mut self, peer: impl Fn(&Parts) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        self.peer = Some(Arc::new(peer));
        self
    }

    /// Returns the client's address; `None` if the peer's address is unknown.
    #[must_use]
    pub fn of(&self, request: &Parts) -> Option<IpAddr> {
        let peer = match &self.peer {
            Some(peer) => peer(request)?,
            None => peer_of(request)?.ip(),
        };
        let mut client = peer.to_canonical();
        let mut said = self.header.named(&request.headers);
        while self.trusts(client) {
            match said.next() {
                Some(Some(next)) => client = next,
                // The proxy names no address, or hides it: the proxy itself is the client.
                Some(None) | None => break,
            }
        }
        Some(self.untranslated(client))
    }

    /// The IPv4 address in one that a translator has made. Not before: a translated address is never
    /// that of a trusted proxy.
    fn untranslated(&self, address: IpAddr) -> IpAddr {
        let IpAddr::V6(v6) = address else {
            return address;
        };
        let prefix = (self.translated.iter()).find(|prefix| prefix.contains(&v6));
        prefix.map_or(address, |prefix| embedded(v6, prefix.prefix_len()).into())
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted
            .iter()
            .any(|network| network.contains(&address))
    }
}

impl Default for ClientAddress {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAddress")
            .field("trusted", &self.trusted)
            .field("translated", &self.translated)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// Lengths of a translator's prefix.
const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// The IPv4 address behind a translator's prefix, whose length is in bits. Bits 64 to 71 are left out.
fn embedded(address: Ipv6Addr, prefix: u8) -> Ipv4Addr {
    let octets = address.octets();
    let mut behind = (usize::from(prefix) / 8..16).filter(|at| *at != 8);
    let mut next = || behind.next().map_or(0, |at| octets[at]);
    [next(), next(), next(), next()].into()
}

/// An address as the key of one customer. Of an IPv6 address, the network of 64 bits: a customer
/// usually has at least that. All customers of a translator share a network, and have an address each.
pub(super) fn customer(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) if LOCAL_USE.contains(&address) => address.to_string(),
        IpAddr::V6(address) => Ipv6Net::new(address, 64)
            .map_or_else(|_| address.to_string(), |net| net.trunc().to_string()),
    }
}

fn peer_of(request: &Parts) -> Option<SocketAddr> {
    #[cfg(feature = "axum")]
    if let Some(info) = request
        .extensions
        .get::<axum::extract::ConnectInfo<SocketAddr>>()
    {
        return Some(info.0);
    }
    request.extensions.get().copied()
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Forwarding {
    /// The addresses in the header, the nearest first; `None` for what is not an address.
    fn named(self, headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
        let name = match self {
            Self::XForwardedFor => X_FORWARDED_FOR,
            Self::Forwarded => header::FORWARDED,
        };
        // Later fields are further right.
        let fields: Vec<_> = headers.get_all(name).iter().collect();
        let fields = fields.into_iter().rev();
        fields.flat_map(move |field| {
            // Invalid bytes on the left do not hide what stands to their right.
            let text = String::from_utf8_lossy(field.as_bytes()).into_owned();
            let all: Vec<_> = match self {
                Self::XForwardedFor => text.rsplit(',').map(node).collect(),
                Self::Forwarded => elements(&text).map(forwarded_for).collect(),
            };
            all
        })
    }
}

/// The elements of a list, from the right, so that an unclosed quote on the left hides nothing.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let comma = text.bytes().rposition(|byte| {
            quoted ^= byte == b'"';
            byte == b',' && !quoted
        });
        rest = comma.map(|comma| &text[..comma]);
        Some(comma.map_or(text, |comma| &text[comma + 1..]))
    })
}

/// The address in `for=..`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    node(value.trim().trim_matches('"'))
}

/// An address with or without a port: `192.0.2.7`, `192.0.2.7:80`, `2001:db8::1`,
/// `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().map(|socket| socket.ip()).ok();
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let address = address.or_else(with_port).or_else(in_brackets)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn parts(peer: &str, fields: &[(&str, &str)]) -> Parts {
        let peer = SocketAddr::new(peer.parse().unwrap(), 5);
        let mut request = Request::get("/").extension(peer);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn behind() -> ClientAddress {
        ClientAddress::new()
            .trust(["10.0.0.0/8", "fd00::/8", "192.0.2.1"])
            .unwrap()
    }

    fn of(address: &ClientAddress, peer: &str, fields: &[(&str, &str)]) -> String {
        address.of(&parts(peer, fields)).unwrap().to_string()
    }

    #[test]
    fn without_trusted_proxies_no_header_is_believed() {
        let fields = [("x-forwarded-for", "8.8.8.8"), ("forwarded", "for=8.8.8.8")];
        assert_eq!(of(&ClientAddress::new(), PROXY, &fields), PROXY);
        assert_eq!(of(&behind(), "203.0.113.7", &fields), "203.0.113.7");
    }

    #[test]
    fn the_header_is_walked_from_the_right_as_far_as_it_is_trusted() {
        for (said, client) in [
            ("203.0.113.7", "203.0.113.7"),
            ("8.8.8.8, 203.0.113.7", "203.0.113.7"),
            ("8.8.8.8,203.0.113.7,10.0.0.9, 192.0.2.1", "203.0.113.7"),
            ("10.0.0.7, 10.0.0.8", "10.0.0.7"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("203.0.113.7, fd00::1", "203.0.113.7"),
            ("203.0.113.7, unknown", PROXY),
            ("203.0.113.7, ", PROXY),
            ("203.0.113.7, unknown, 10.0.0.9", "10.0.0.9"),
        ] {
            assert_eq!(
                of(&behind(), PROXY, &[("x-forwarded-for", said)]),
                client,
                "{said}"
            );
        }
        let two = [
            ("x-forwarded-for", "8.8.8.8"),
            ("x-forwarded-for", "203.0.113.7"),
        ];
        assert_eq!(of(&behind(), PROXY, &two), "203.0.113.7");
        assert_eq!(of(&behind(), PROXY, &[]), PROXY);
        // A dual-stack socket shows IPv4 peers as IPv6 addresses.
        let mapped = [("x-forwarded-for", "203.0.113.7")];
        assert_eq!(of(&behind(), "::ffff:10.0.0.1", &mapped), "203.0.113.7");
    }

    #[test]
    fn forwarded_is_read_with_its_quotes_and_a_strangers_open_quote_hides_nothing() {
        let behind = behind().header(Forwarding::Forwarded);
        for (said, client) in [
            ("for=203.0.113.7", "203.0.113.7"),
            (
                "proto=http;FOR=\"[2001:db8::1]:80\";by=10.0.0.1",
                "2001:db8::1",
            ),
            (
                "for=8.8.8.8, for=203.0.113.7;by=\"a,b\", for=10.0.0.9",
                "203.0.113.7",
            ),
            ("for=\"8.8.8.8, for=203.0.113.7", "203.0.113.7"),
            ("for=\"8.8.8.8, for=\"203.0.113.7:1\"", "203.0.113.7"),
            ("for=8.8.8.8, for=_hidden", PROXY),
            ("for=8.8.8.8, proto=http", PROXY),
        ] {
            assert_eq!(of(&behind, PROXY, &[("forwarded", said)]), client, "{said}");
        }
        let other = [("x-forwarded-for", "8.8.8.8")];
        assert_eq!(
            of(&behind, PROXY, &other),
            PROXY,
            "a header that the proxy does not write"
        );
    }

    #[test]
    fn the_peer_may_be_found_elsewhere_or_nowhere() {
        let head = Request::get("/").body(()).unwrap().into_parts().0;
        assert_eq!(ClientAddress::new().of(&head), None);
        let fixed = ClientAddress::new().peer(|_| Some(IpAddr::from([1, 2, 3, 4])));
        assert_eq!(fixed.of(&head), Some(IpAddr::from([1, 2, 3, 4])));
    }

    #[test]
    fn clients_behind_a_translator_have_the_ipv4_address_that_it_embedded() {
        let address = ClientAddress::new()
            .nat64(["2001:db8::/32", "2001:0:1:2:3::/96", "2001:db9:0:64::/64"])
            .unwrap();
        for (peer, client) in [
            ("64:ff9b::203.0.113.7", "203.0.113.7"),
            ("64:ff9b::c000:221", "192.0.2.33"),
            ("2001:db8:c000:221::", "192.0.2.33"),
            ("2001:db9:0:64:c0:2:2100:0", "192.0.2.33"),
            ("2001:0:1:2:3::203.0.113.7", "203.0.113.7"),
            ("64:ff9b:0:1::203.0.113.7", "64:ff9b:0:1::cb00:7107"),
            ("2001:dba::1", "2001:dba::1"),
        ] {
            assert_eq!(of(&address, peer, &[]), client, "{peer}");
        }
        // All six lengths, as RFC 6052 has them in section 2.4.
        for (length, translated) in [
            (32, "2001:db8:c000:221::"),
            (40, "2001:db8:1c0:2:21::"),
            (48, "2001:db8:122:c000:2:2100::"),
            (56, "2001:db8:122:3c0:0:221::"),
            (64, "2001:db8:122:344:c0:2:2100::"),
            (96, "2001:db8:122:344::192.0.2.33"),
        ] {
            let found = embedded(translated.parse().unwrap(), length);
            assert_eq!(found.to_string(), "192.0.2.33", "{length}");
        }
    }

    #[test]
    fn a_translated_address_is_no_trusted_proxy() {
        let forged = [("x-forwarded-for", "8.8.8.8")];
        assert_eq!(of(&behind(), "64:ff9b::10.0.0.1", &forged), "10.0.0.1");
        let appended = [("x-forwarded-for", "8.8.8.8, 64:ff9b::203.0.113.7")];
        assert_eq!(of(&behind(), PROXY, &appended), "203.0.113.7");
    }

    #[test]
    fn what_is_no_prefix_of_a_translator_is_refused() {
        for text in ["2001:db8::/33", "10.0.0.0/8", "2001:db8::1"] {
            let error = ClientAddress::new().nat64([text]).unwrap_err();
            assert_eq!(error.field(), "nat64");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let error = ClientAddress::new()
            .trust(["10.0.0.0/8", "10.0.0.0/33"])
            .unwrap_err();
        assert_eq!(error.field(), "trust");
        assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    }

    #[test]
    fn a_customer_is_an_address_or_a_network_of_ipv6() {
        let of = |text: &str| customer(text.parse().unwrap());
        assert_eq!(of("203.0.113.7"), "203.0.113.7");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(of("2001:db8:1:2::7"), of("2001:db8:1:2:ffff::"));
        let translated = |last: &str| of(&format!("64:ff9b:1::{last}"));
        assert_ne!(translated("203.0.113.7"), translated("203.0.113.8"));
    }

    proptest! {
        /// Whatever clients write, the address that the trusted proxy appended is found.
        #[test]
        fn what_strangers_write_changes_nothing(junk in prop::collection::vec(0x20u8..=0xff, 0..60)) {
            prop_assume!(!junk.contains(&0x7f));
            for (header, name, own) in [
                (Forwarding::XForwardedFor, "x-forwarded-for", &b",203.0.113.7"[..]),
                (Forwarding::Forwarded, "forwarded", &b", for=203.0.113.7"[..]),
            ] {
                let mut parts = parts(PROXY, &[]);
                let value = [&junk[..], own].concat();
                parts.headers.insert(name, http::HeaderValue::from_bytes(&value).unwrap());
                let found = behind().header(header).of(&parts).unwrap();
                prop_assert_eq!(found.to_string(), "203.0.113.7");
            }
        }
    }
}
