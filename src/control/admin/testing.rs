//! A desk to ask at: an admin server over a house of plain values, and a client that writes raw heads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::control::testing::{House as Fake, Never};
use crate::ids::Addr;
use crate::plan::{AdminPlan, Plan};

/// An empty folder of this test's own, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn folder() -> Folder {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("outrigger-admin-{}-{next}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

pub(super) struct Desk {
    pub(super) fake: Fake,
    addr: Addr,
    tasks: Tasks,
}

impl Desk {
    pub(super) async fn tcp(plan: Plan, token: Option<PathBuf>) -> Self {
        let listen: Addr = "127.0.0.1:0".parse().unwrap();
        Self::open(plan, Surface::Admin(AdminPlan { listen: listen.clone(), token }), listen).await
    }

    pub(super) async fn unix(plan: Plan, path: &Path) -> Self {
        let listen = Addr::Unix(path.into());
        Self::open(plan, Surface::Admin(AdminPlan { listen: listen.clone(), token: None }), listen).await
    }

    pub(super) async fn status(plan: Plan) -> Self {
        Self::open(plan, Surface::Status, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn open(plan: Plan, surface: Surface, listen: Addr) -> Self {
        let (fake, tasks) = (Fake::new(plan), Tasks::default());
        let listener = Listener::bind(&listen).await.unwrap();
        let addr = listener.local_addr().map_or(listen, Addr::Tcp);
        tasks.spawn(serve(listener, fake.house.clone(), surface, tasks.clone()));
        Self { fake, addr, tasks }
    }

    /// Lets reloads happen; set the flag to make the file bad.
    pub(super) fn run_reloader(&mut self) -> Arc<AtomicBool> {
        let reloader = self.fake.reloader.take().unwrap();
        let bad = Never::flag(&reloader);
        self.tasks.spawn(reloader.run::<()>(None, self.fake.house.stop.watch()));
        bad
    }

    /// Connects over TCP and says nothing.
    pub(super) async fn silent(&self) -> TcpStream {
        TcpStream::connect(self.addr.tcp().unwrap()).await.unwrap()
    }

    /// Sends a head and returns the status and the body.
    pub(super) async fn ask(&self, request: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{request} HTTP/1.1\r\nconnection: close\r\n{fields}\r\n");
        let mut io = match &self.addr {
            Addr::Tcp(addr) => Io::Tcp(TcpStream::connect(addr).await.unwrap()),
            Addr::Unix(path) => Io::Unix(UnixStream::connect(path).await.unwrap()),
        };
        io.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = io.read_to_end(&mut answer).await;
        assert!(read.is_ok() || !answer.is_empty(), "{read:?}");
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}
