//! Where the admin server listens: a TCP port, or a Unix socket that only this process's user can open.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::guard::Caller;
use crate::ids::Addr;
use crate::net::io::Io;

const BACKLOG: i32 = 128;

/// A bound listener.
pub struct Listener(Kind);

enum Kind {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: Socketfile },
}

impl Listener {
    /// Binds `addr`. Must be called on the runtime that serves it.
    ///
    /// # Errors
    /// When it cannot be bound; a Unix socket that nobody listens on any more is replaced.
    pub async fn bind(addr: &Addr) -> io::Result<Self> {
        match addr {
            Addr::Tcp(addr) => TcpListener::bind(addr).await.map(Kind::Tcp).map(Self),
            Addr::Unix(path) => bind_unix(path).map(Self),
        }
    }

    /// The TCP address it got, which tells the port where 0 was asked for.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix { .. } => None,
        }
    }

    /// The next connection; cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<(Io, Caller)> {
        match &self.0 {
            Kind::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Io::Tcp(stream), Caller::Tcp))
            }
            Kind::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|who| who.uid());
                Ok((Io::Unix(stream), Caller::Unix { uid }))
            }
        }
    }
}

/// The socket's file, removed at the end if it is still ours.
struct Socketfile {
    path: PathBuf,
    inode: u64,
}

impl Drop for Socketfile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|facts| facts.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Kind> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before `listen`, so nobody connects while the mode is wider.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let file = Socketfile { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() };
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(Kind::Unix { listener: UnixListener::from_std(socket.into())?, _file: file })
}

/// Removes a socket that an earlier process left; one that answers is in use.
fn remove_stale(path: &Path) -> io::Result<()> {
    let facts = match fs::symlink_metadata(path) {
        Ok(facts) => facts,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !facts.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is a file that is not a socket"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::folder;
    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_over_only_from_the_dead() {
        let folder = folder();
        let path = folder.join("a.sock");
        let addr = Addr::Unix(path.clone().into());
        let first = Listener::bind(&addr).await.unwrap();
        assert_eq!(Listener::bind(&addr).await.err().unwrap().kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists(), "the file goes with the listener");

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let second = Listener::bind(&addr).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(second);
        assert!(path.exists(), "another's file stays");
        assert_eq!(Listener::bind(&addr).await.err().unwrap().kind(), ErrorKind::AlreadyExists);
    }
}
