//! URLs of a single server, a Sentinel group or a Cluster.

use std::fmt;

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    TlsMode,
};

/// A valid Redis URL.
#[derive(Clone)]
pub(crate) enum Endpoint {
    Single(ConnectionInfo),
    #[cfg_attr(
        not(feature = "sentinel"),
        allow(dead_code, reason = "parsed, and refused with the name of the feature")
    )]
    Sentinel {
        nodes: Vec<ConnectionAddr>,
        service: String,
        settings: RedisConnectionInfo,
        tls: Option<TlsMode>,
    },
    Cluster(Vec<ConnectionInfo>),
}

/// An error in a Redis URL. Never shows the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidUrl {
    url: String,
    rule: String,
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis URL `{}`: {}", self.url, self.rule)
    }
}

impl std::error::Error for InvalidUrl {}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |rule: String| InvalidUrl {
            url: redacted(url),
            rule,
        };
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
            Self::Sentinel { nodes, service, .. } => {
                write!(f, "sentinel {service} at {}", list(nodes.iter()))
            }
            Self::Cluster(infos) => write!(
                f,
                "cluster at {}",
                list(infos.iter().map(ConnectionInfo::addr))
            ),
        }
    }
}

fn list<'a>(nodes: impl Iterator<Item = &'a ConnectionAddr>) -> String {
    nodes.map(ToString::to_string).collect::<Vec<_>>().join(",")
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
        let (kind, scheme) = match scheme {
            "redis" | "rediss" | "unix" | "redis+unix" | "valkey" | "valkeys" => {
                (Kind::Single, scheme)
            }
            "redis-sentinel" => (Kind::Sentinel, "redis"),
            "rediss-sentinel" => (Kind::Sentinel, "rediss"),
            "redis-cluster" => (Kind::Cluster, "redis"),
            "rediss-cluster" => (Kind::Cluster, "rediss"),
            _ => {
                return Err(
                    "the scheme must be redis, rediss, unix, redis-sentinel, rediss-sentinel, \
                            redis-cluster or rediss-cluster",
                );
            }
        };
        let (rest, query) = rest
            .split_once('?')
            .map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest
            .find('/')
            .map_or((rest, ""), |slash| rest.split_at(slash));
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
        Ok(Endpoint::Sentinel {
            nodes: infos.iter().map(|info| info.addr().clone()).collect(),
            service: service.to_owned(),
            settings: infos[0].redis_settings().clone(),
            tls: (self.scheme == "rediss").then_some(TlsMode::Secure),
        })
    }
}

fn has_port(host: &str) -> bool {
    // "[::1]:26379" has one, "[::1]" and "::1" do not.
    host.rsplit_once(':').is_some_and(|(before, port)| {
        port.bytes().all(|digit| digit.is_ascii_digit())
            && (!before.contains(':') || before.ends_with(']'))
    })
}

/// The URL without user and password.
fn redacted(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    match url[start..end].rfind('@') {
        Some(at) => format!("{}***{}", &url[..start], &url[start + at..]),
        None => url.to_owned(),
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
        let Ok(Endpoint::Sentinel { settings, .. }) =
            Endpoint::parse("redis-sentinel://app:s%40t@h/m/2")
        else {
            panic!("is a Sentinel URL")
        };
        assert_eq!(
            (settings.username(), settings.password(), settings.db()),
            (Some("app"), Some("s@t"), 2)
        );
        assert!(matches!(settings.protocol(), ProtocolVersion::RESP3));
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
        ] {
            let error = Endpoint::parse(url).unwrap_err().to_string();
            assert!(
                error.to_lowercase().contains(&says.to_lowercase()),
                "{url}: {error}"
            );
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
