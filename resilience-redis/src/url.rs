//! URLs of a single server, a Sentinel group or a Cluster.

use std::fmt;

use ::url::form_urlencoded;
use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
};

use crate::credentials::Credentials;

/// A valid Redis URL.
#[derive(Clone)]
pub(crate) enum Endpoint {
    Single(ConnectionInfo),
    Sentinel(SentinelGroup),
    Cluster(Vec<ConnectionInfo>),
}

/// Sentinels, and the service that they watch.
#[derive(Clone)]
pub(crate) struct SentinelGroup {
    pub(crate) sentinels: Vec<ConnectionInfo>,
    pub(crate) service: String,
    /// A sentinel's address, with the settings of the servers.
    servers: ConnectionInfo,
}

/// Host and port.
pub(crate) type Address = (String, u16);

impl SentinelGroup {
    /// A server of the group.
    pub(crate) fn server(&self, address: &Address) -> ConnectionInfo {
        let servers = self.servers.clone();
        let addr = at(servers.addr(), address.clone());
        servers.set_addr(addr)
    }

    /// Logs in to the sentinels.
    pub(crate) fn log_in(&mut self, credentials: &Credentials) {
        for sentinel in &mut self.sentinels {
            *sentinel = credentials.apply(sentinel.clone());
        }
    }
}

/// The address of another node, reached in the same way as `this` one. Without a host, on the host of `this` one.
pub(crate) fn at(this: &ConnectionAddr, (host, port): Address) -> ConnectionAddr {
    let mut addr = this.clone();
    if let ConnectionAddr::Tcp(own_host, own_port)
    | ConnectionAddr::TcpTls {
        host: own_host,
        port: own_port,
        ..
    } = &mut addr
    {
        *own_port = port;
        if !host.is_empty() {
            *own_host = host;
        }
    }
    addr
}

/// An error in a Redis URL. Shows the scheme and the hosts; never user, password or query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidUrl {
    /// What can be shown.
    url: String,
    rule: String,
}

impl InvalidUrl {
    fn new(url: &str, rule: String) -> Self {
        Self {
            url: shown(url),
            rule,
        }
    }
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis URL `{}`: {}", self.url, self.rule)
    }
}

impl std::error::Error for InvalidUrl {}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |rule: String| InvalidUrl::new(url, rule);
        let parts = Parts::split(url).map_err(|rule| invalid(rule.into()))?;
        let infos = parts.infos().map_err(|error| invalid(error.to_string()))?;
        let first = infos
            .first()
            .ok_or_else(|| invalid("names no host".into()))?;
        if !first.addr().is_supported() {
            return Err(invalid("TLS needs the feature `tls`".into()));
        }
        match parts.kind {
            Kind::Single if infos.len() > 1 => Err(invalid(
                "several hosts need `redis-sentinel://` or `redis-cluster://`".into(),
            )),
            Kind::Single => Ok(Self::Single(first.clone())),
            Kind::Sentinel if !cfg!(feature = "sentinel") => {
                Err(invalid("Sentinel needs the feature `sentinel`".into()))
            }
            Kind::Cluster if !cfg!(feature = "cluster") => {
                Err(invalid("Cluster needs the feature `cluster`".into()))
            }
            Kind::Sentinel => parts.sentinel(&infos).map_err(|rule| invalid(rule.into())),
            Kind::Cluster if first.redis_settings().db() != 0 => {
                Err(invalid("a Cluster has no database but 0".into()))
            }
            Kind::Cluster => Ok(Self::Cluster(infos)),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single(info) => write!(f, "{}", info.addr()),
            Self::Sentinel(group) => {
                let sentinels = list(&group.sentinels);
                write!(f, "sentinel {} at {sentinels}", group.service)
            }
            Self::Cluster(nodes) => write!(f, "cluster at {}", list(nodes)),
        }
    }
}

fn list(nodes: &[ConnectionInfo]) -> String {
    let addresses = nodes.iter().map(|node| node.addr().to_string());
    addresses.collect::<Vec<_>>().join(",")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Sentinel,
    Cluster,
}

/// The parts of `scheme://userinfo@host,host/path?query`. The client crate parses the URLs of single hosts that are composed
/// from them.
struct Parts<'a> {
    kind: Kind,
    /// `redis`, `rediss` or the unix schemes.
    scheme: &'a str,
    userinfo: Option<&'a str>,
    hosts: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn split(url: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("has no scheme (redis://..)")?;
        let (kind, scheme) = kind(scheme).ok_or(
            "the scheme must be redis, rediss, unix, redis-sentinel, rediss-sentinel, redis-cluster \
             or rediss-cluster",
        )?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if tail.contains('@') && !scheme.contains("unix") {
            return Err("`/`, `?` or `#` stands before the last `@`; percent-encode the password");
        }
        let (path, query) = tail
            .split_once('?')
            .map_or((tail, None), |(path, query)| (path, Some(query)));
        let (userinfo, hosts) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        Ok(Self {
            kind,
            scheme,
            userinfo,
            hosts,
            path,
            query,
        })
    }

    /// The database; in a Sentinel URL it follows the name of the service.
    fn database(&self) -> &str {
        let path = self.path.trim_start_matches('/');
        if self.kind == Kind::Sentinel {
            path.split_once('/').map_or("", |(_, database)| database)
        } else {
            path
        }
    }

    fn infos(&self) -> redis::RedisResult<Vec<ConnectionInfo>> {
        let at = self
            .userinfo
            .map(|user| format!("{user}@"))
            .unwrap_or_default();
        let query = self
            .query
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let path = if self.scheme.contains("unix") {
            self.path.into()
        } else {
            format!("/{}", self.database())
        };
        let default_port = if self.kind == Kind::Sentinel {
            ":26379"
        } else {
            ""
        };
        let one = |host: &str| {
            let port = if has_port(host) { "" } else { default_port };
            let info = format!("{}://{at}{host}{port}{path}{query}", self.scheme)
                .into_connection_info()?;
            let settings = info
                .redis_settings()
                .clone()
                .set_protocol(ProtocolVersion::RESP3);
            Ok(info.set_redis_settings(settings))
        };
        self.hosts.split(',').map(one).collect()
    }

    fn sentinel(&self, infos: &[ConnectionInfo]) -> Result<Endpoint, &'static str> {
        let service = self
            .path
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        if service.is_empty() {
            return Err("a Sentinel URL names the service: redis-sentinel://host:26379/mymaster");
        }
        let settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        let sentinels = infos.iter().cloned();
        let sentinels = sentinels.map(|info| info.set_redis_settings(settings.clone()));
        let mut group = SentinelGroup {
            sentinels: sentinels.collect(),
            service: service.to_owned(),
            servers: infos[0].clone(),
        };
        if let Some(credentials) = self.query.and_then(sentinel_credentials) {
            group.log_in(&credentials);
        }
        Ok(Endpoint::Sentinel(group))
    }
}

fn sentinel_credentials(query: &str) -> Option<Credentials> {
    let parameter = |wanted: &str| {
        let mut all = form_urlencoded::parse(query.as_bytes());
        all.find_map(|(name, value)| (name == wanted).then_some(value))
    };
    let password = parameter("sentinel_password")?;
    Some(match parameter("sentinel_username") {
        Some(username) => Credentials::new(username, password),
        None => Credentials::password(password),
    })
}

fn has_port(host: &str) -> bool {
    // "[::1]:26379" has one, "[::1]" and "::1" do not.
    host.rsplit_once(':').is_some_and(|(before, port)| {
        port.bytes().all(|digit| digit.is_ascii_digit())
            && (!before.contains(':') || before.ends_with(']'))
    })
}

fn kind(scheme: &str) -> Option<(Kind, &str)> {
    Some(match scheme {
        "redis" | "rediss" | "unix" | "redis+unix" | "valkey" | "valkeys" => (Kind::Single, scheme),
        "redis-sentinel" => (Kind::Sentinel, "redis"),
        "rediss-sentinel" => (Kind::Sentinel, "rediss"),
        "redis-cluster" => (Kind::Cluster, "redis"),
        "rediss-cluster" => (Kind::Cluster, "rediss"),
        _ => return None,
    })
}

/// What can be shown of a URL that is refused, so that it is not known which part is a secret: the scheme, and what follows
/// the last `@`, without the query.
fn shown(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) if kind(scheme).is_some() => (format!("{scheme}://"), rest),
        _ => (String::new(), url),
    };
    let until = |text: &str, ends: &[char]| match text.find(ends) {
        Some(end) => format!("{}***", &text[..end]),
        None => text.to_owned(),
    };
    match rest.rsplit_once('@') {
        // The `@` may be a part of the query.
        Some((before, _)) if before.contains('?') => format!("{scheme}***"),
        Some((_, hosts)) => format!("{scheme}***@{}", until(hosts, &['?', '#'])),
        // A password without a host may stand where the port does.
        None => format!("{scheme}{}", until(rest, &[':', '?', '#'])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        format!("{:?}", Endpoint::parse(url).unwrap())
    }

    #[test]
    fn one_url_says_single_sentinel_or_cluster() {
        assert_eq!(shown("redis://127.0.0.1:7000/3"), "127.0.0.1:7000");
        assert_eq!(shown("redis://localhost"), "localhost:6379");
        assert_eq!(shown("unix:///run/redis.sock"), "/run/redis.sock");
        assert_eq!(
            shown("redis-sentinel://a,b:7/mymaster/2"),
            "sentinel mymaster at a:26379,b:7"
        );
        assert_eq!(shown("redis-cluster://u:p@a:1,b:2"), "cluster at a:1,b:2");
    }

    #[test]
    fn user_password_and_database_are_read_and_resp3_is_spoken() {
        let Ok(Endpoint::Sentinel(group)) = Endpoint::parse("redis-sentinel://app:s%40t@h/m/2")
        else {
            panic!("is a Sentinel URL")
        };
        let master = group.server(&("elsewhere".into(), 7));
        assert_eq!(master.addr().to_string(), "elsewhere:7");
        let settings = master.redis_settings();
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("app"), Some("s@t"), 2)
        );
        assert!(matches!(settings.protocol(), ProtocolVersion::RESP3));
        let sentinel = group.sentinels[0].redis_settings();
        assert_eq!((sentinel.password(), sentinel.db()), (None, 0));
    }

    #[test]
    fn sentinels_have_a_login_of_their_own() {
        let url =
            "redis-sentinel://app:servers@h/m?sentinel_username=watch&sentinel_password=s%26s";
        let Ok(Endpoint::Sentinel(group)) = Endpoint::parse(url) else {
            panic!("is a Sentinel URL")
        };
        let sentinel = group.sentinels[0].redis_settings();
        let login = (sentinel.username(), sentinel.password());
        assert_eq!(login, (Some("watch"), Some("s&s")));
        let master = group.server(&("elsewhere".into(), 7));
        assert_eq!(master.redis_settings().password(), Some("servers"));
    }

    #[test]
    fn a_bad_url_is_refused_with_the_reason_and_without_the_password() {
        for (url, says) in [
            ("localhost:6379", "has no scheme"),
            ("http://localhost", "the scheme must be"),
            ("redis://a,b", "several hosts need"),
            ("redis-sentinel://h", "names the service"),
            ("redis-cluster://h/4", "no database but 0"),
            ("redis://h/not-a-number", "database"),
            (
                "redis://u:secret@h:notaport",
                "Redis URL `redis://***@h:notaport`",
            ),
            ("redis://u:se/secret@h:1/2", "`redis://***@h:1/2`"),
            ("redis://u:1/secret@h:1", "percent-encode the password"),
            (
                "redis-sentinel://u:1/secret@h:1",
                "percent-encode the password",
            ),
            (
                "redis-cluster://u:se?secret@h:1",
                "percent-encode the password",
            ),
            ("redis://u:se#secret@h:1", "percent-encode the password"),
            ("redis://:secret", "`redis://***`"),
            ("u:secret@h:1", "`***@h:1`"),
            (
                "unix:///run/redis.sock?db=x&pass=secret",
                "`unix:///run/redis.sock***`",
            ),
            ("unix:///run/redis.sock?db=x&pass=se@secret", "`unix://***`"),
        ] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(
                error.to_lowercase().contains(&says.to_lowercase()),
                "{url}: {error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_password_is_only_blamed_for_what_it_can_cause() {
        for url in [
            "redis://u:p@h/x",
            "redis://u:p@a,b",
            "redis-cluster://u:p@h/4",
            "http://u:p@h",
        ] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(!error.contains("password"), "{error}");
        }
    }
}
