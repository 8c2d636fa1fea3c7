//! The sections `telemetry` and `admin`: what the sidecar says about its work, and to whom.

use super::collect::OrOff;
use super::kind::{Set, words};
use super::section::section;
use super::values::{FilePath, LocalListen};

words! {
    /// Which exchanges are written.
    AccessLog {
        /// None.
        Off "off";
        /// Those that failed, or ended in a 5xx.
        Failures "failures";
        /// All.
        All "all";
    }
}

words! {
    /// How a line looks.
    Format {
        /// `key=value` words.
        Text "text";
        /// One JSON object.
        Json "json";
    }
}

section! {
    /// What the sidecar says about its work.
    Telemetry {
        /// One line for each exchange, to stderr.
        access_log "access-log": Set<AccessLogging> = Is("{}");
    }
}

section! {
    /// One line for each exchange, to stderr.
    AccessLogging {
        /// Which exchanges are written: off, failures or all.
        log "log": Set<AccessLog> = Is("failures");
        /// How a line looks: text or json.
        format "format": Set<Format> = Is("text");
    }
}

section! {
    /// The admin server; short form: its address, or `off`.
    Admin = "listen" {
        /// Loopback or a Unix socket, or `off`.
        listen "listen": Set<OrOff<LocalListen>> = Is("127.0.0.1:15000");
        /// A file (mode 0600) whose text every change must carry as its bearer token; without it, changes need a Unix socket.
        token "token": Option<Set<FilePath>> = Unset("/run/outrigger/token");
    }
}
