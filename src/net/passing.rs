//! Messages between two processes of ours over a Unix socket, each with the descriptors that come with it (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// No message is longer.
pub const LONGEST: usize = 4096;
/// No message has more descriptors.
const MOST: usize = 4;

/// Both ends of a way that keeps messages whole and apart; neither is inherited by programs that are started.
///
/// # Errors
/// The system's.
pub fn pair(flags: SocketFlags) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | flags, None)?)
}

/// Sends one message.
///
/// # Errors
/// The system's; `BrokenPipe` where nobody is at the other end.
pub fn send(socket: impl AsFd, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes one message into `text`: how long it is, and its descriptors.
///
/// # Errors
/// The system's; `UnexpectedEof` where nobody is at the other end any more, `InvalidData` for a message cut short.
pub fn receive(socket: impl AsFd, text: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let came = recvmsg(socket, &mut [IoSliceMut::new(text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    if came.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message was cut short: too few descriptors are free",
        ));
    }
    if came.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((came.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_stay_apart_and_bring_what_belongs_to_them() {
        let (one, other) = pair(SocketFlags::empty()).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send(&one, b"first", &[far.as_fd()]).unwrap();
        send(&one, b"second", &[]).unwrap();
        drop(far);
        let mut text = [0; LONGEST];
        let (length, mut fds) = receive(&other, &mut text).unwrap();
        assert_eq!((&text[..length], fds.len()), (&b"first"[..], 1));
        near.write_all(b"through").unwrap();
        let mut through = [0; 7];
        UnixStream::from(fds.remove(0)).read_exact(&mut through).unwrap();
        assert_eq!(&through, b"through");
        let (length, fds) = receive(&other, &mut text).unwrap();
        assert_eq!((&text[..length], fds.len()), (&b"second"[..], 0));
        drop(one);
        assert_eq!(receive(&other, &mut text).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(send(&other, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let (one, other) = pair(SocketFlags::empty()).unwrap();
        send(&one, b"too long", &[]).unwrap();
        assert_eq!(receive(&other, &mut [0; 3]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let many = vec![one.as_fd(); MOST * 4];
        assert_eq!(send(&one, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
