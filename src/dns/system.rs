//! The machine's own resolver files: resolv.conf (servers, search list, ndots) and the hosts file, read again on change.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::Instant;

use super::hosts::Hosts;

/// The files are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// They are read anew this often although they look the same.
const READ_EVERY: Duration = Duration::from_secs(60);

/// Where the files lie; tests have their own.
#[derive(Debug, Clone)]
pub struct Files {
    /// resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// hosts(5).
    pub hosts: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into() }
    }
}

/// What resolv.conf says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// The servers, at port 53, in the file's order.
    pub servers: Vec<SocketAddr>,
    /// The search list.
    pub search: Vec<Name>,
    /// A name with at least this many dots is tried as it stands first.
    pub ndots: usize,
}

impl Default for Conf {
    /// What resolv.conf(5) says of a machine without the file.
    fn default() -> Self {
        Self { servers: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53)], search: Vec::new(), ndots: 1 }
    }
}

impl Conf {
    /// Reads the text of a resolv.conf. Without a server the local one is meant.
    ///
    /// # Errors
    /// A search list that cannot be read, in the words of hickory.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut text = text.to_vec();
        // The reader refuses a file without servers, and the C library does not.
        let without = !text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii().starts_with(b"nameserver"));
        if without {
            text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
        }
        let (config, options) = parse_resolv_conf(&text).map_err(|error| error.to_string())?;
        let mut servers = Vec::new();
        for server in config.name_servers() {
            let addr = SocketAddr::new(server.ip, 53);
            if !servers.contains(&addr) {
                servers.push(addr);
            }
        }
        Ok(Self { servers, search: config.search().to_vec(), ndots: options.ndots })
    }

    /// The absolute names that a name as written may mean, in the order to try them; a trailing dot makes it one.
    pub fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let mut names: Vec<Name> = Vec::with_capacity(self.search.len() + 1);
        for domain in &self.search {
            if let Ok(mut searched) = name.clone().append_domain(domain) {
                searched.set_fqdn(true);
                if !names.contains(&searched) {
                    names.push(searched);
                }
            }
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        names.retain(|searched| *searched != absolute);
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, absolute);
        names
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64, i64, i64),
}

fn print(path: &Path) -> Option<Print> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Print {
        inode: (meta.dev(), meta.ino()),
        size: meta.size(),
        changed: (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()),
    })
}

/// The files as last read.
#[derive(Debug)]
pub struct System {
    files: Files,
    prints: (Option<Print>, Option<Print>),
    looked: Option<Instant>,
    read: Option<Instant>,
    conf: Arc<Conf>,
    hosts: Arc<Hosts>,
}

impl System {
    /// Nothing is read yet.
    pub fn new(files: Files) -> Self {
        Self { files, prints: (None, None), looked: None, read: None, conf: Arc::default(), hosts: Arc::default() }
    }

    /// What the files say at `now`: they are looked at again when a second is over and read again when they look
    /// different, or when a minute is over. A resolv.conf that cannot be read leaves the last good one in force.
    pub fn at(&mut self, now: Instant) -> (Arc<Conf>, Arc<Hosts>) {
        let over =
            |since: Option<Instant>, span| since.is_none_or(|since| now.saturating_duration_since(since) >= span);
        if over(self.looked, LOOK_EVERY) {
            self.looked = Some(now);
            let prints = (print(&self.files.resolv_conf), print(&self.files.hosts));
            let again = over(self.read, READ_EVERY);
            if again || prints.0 != self.prints.0 {
                self.read_conf();
            }
            if again || prints.1 != self.prints.1 {
                self.read_hosts();
            }
            if again {
                self.read = Some(now);
            }
            self.prints = prints;
        }
        (self.conf.clone(), self.hosts.clone())
    }

    fn read_conf(&mut self) {
        let path = &self.files.resolv_conf;
        let conf = match std::fs::read(path) {
            Ok(text) => Conf::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Conf::default()),
            Err(error) => Err(error.to_string()),
        };
        match conf {
            Ok(conf) if conf == *self.conf => {}
            Ok(conf) => self.conf = Arc::new(conf),
            Err(why) => tracing::warn!("{} cannot be read ({why}); what it said before stays in force", path.display()),
        }
    }

    fn read_hosts(&mut self) {
        let text = std::fs::read(&self.files.hosts).unwrap_or_default();
        let hosts = Hosts::parse(&String::from_utf8_lossy(&text));
        if hosts != *self.hosts {
            self.hosts = Arc::new(hosts);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn resolv_conf() {
        for (text, servers, search, ndots) in [
            ("", &["127.0.0.1:53"][..], &[][..], 1),
            (
                "# made by hand\nnameserver 10.0.0.10\nnameserver 10.0.0.10\nnameserver 2001:db8::53\n\
                 search a.test b.test.\noptions ndots:5 timeout:2\n",
                &["10.0.0.10:53", "[2001:db8::53]:53"],
                &["a.test", "b.test"],
                5,
            ),
            ("nameserver 10.0.0.1\ndomain lan\n", &["10.0.0.1:53"], &["lan"], 1),
            ("options nonsense\nbananas\nnameserver 10.0.0.1\n", &["10.0.0.1:53"], &[], 1),
        ] {
            let conf = Conf::parse(text.as_bytes()).unwrap();
            assert_eq!(conf.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), servers, "{text}");
            let names: Vec<_> =
                conf.search.iter().map(|name| name.to_ascii().trim_end_matches('.').to_owned()).collect();
            assert_eq!(names, search, "{text}");
            assert_eq!(conf.ndots, ndots, "{text}");
        }
    }

    #[test]
    fn the_search_list_and_the_dots() {
        let conf = |search: &[&str], ndots| Conf {
            search: search.iter().map(|name| Name::from_str(name).unwrap()).collect(),
            ndots,
            ..Conf::default()
        };
        for (name, search, ndots, want) in [
            ("db", &["a.test", "b.test."][..], 1, &["db.a.test.", "db.b.test.", "db."][..]),
            ("db.", &["a.test"], 1, &["db."]),
            ("db.shop", &["a.test"], 1, &["db.shop.", "db.shop.a.test."]),
            ("db.shop", &["a.test"], 5, &["db.shop.a.test.", "db.shop."]),
            ("db.shop", &[], 5, &["db.shop."]),
            ("_grpc._tcp.db", &["a.test"], 5, &["_grpc._tcp.db.a.test.", "_grpc._tcp.db."]),
            ("db", &["a.test", "a.test", "."], 1, &["db.a.test.", "db."]),
        ] {
            let got: Vec<_> = conf(search, ndots)
                .candidates(&Name::from_str_relaxed(name).unwrap())
                .iter()
                .map(Name::to_ascii)
                .collect();
            assert_eq!(got, want, "{name} {search:?} ndots:{ndots}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_read_again_when_they_change() {
        let dir = std::env::temp_dir().join(format!("outrigger-system-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let files = Files { resolv_conf: dir.join("resolv.conf"), hosts: dir.join("hosts") };
        let mut system = System::new(files.clone());
        let start = Instant::now();
        assert_eq!(*system.at(start).0, Conf::default());
        std::fs::write(&files.resolv_conf, "nameserver 10.0.0.1\n").unwrap();
        std::fs::write(&files.hosts, "10.0.0.2 db\n").unwrap();
        assert_eq!(*system.at(start).0, Conf::default(), "not looked at twice in a second");
        let (conf, hosts) = system.at(start + LOOK_EVERY);
        assert_eq!(conf.servers, ["10.0.0.1:53".parse().unwrap()]);
        assert!(hosts.find("db").is_some());
        std::fs::write(&files.resolv_conf, "nameserver 10.0.0.1\nsearch bad..name\n").unwrap();
        std::fs::remove_file(&files.hosts).unwrap();
        let (conf, hosts) = system.at(start + LOOK_EVERY * 2);
        assert_eq!(conf.servers, ["10.0.0.1:53".parse().unwrap()], "the last good one stays");
        assert!(hosts.find("db").is_none());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
