//! A terminal of a program's own.
//!
//! The warden makes it, not the program: programs cannot open `/dev/ptmx`. There is one at most at a time, for the run that
//! asked for it, and it is gone with the last of its descriptors.

use std::io;
use std::os::fd::OwnedFd;

use quorun_warden::protocol::WindowSize;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// What ends the input of a program that reads lines from a terminal, unless it has asked for every byte.
pub(crate) const END_OF_INPUT: u8 = 4;

/// The two ends of a terminal.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) warden: OwnedFd,
    pub(crate) program: OwnedFd,
}

/// Makes a terminal.
pub(crate) fn open(size: WindowSize) -> io::Result<Ends> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let warden = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&warden)?;
    // By the descriptor: what stands under a name in /dev/pts need not be this terminal.
    let program = rustix::pty::ioctl_tiocgptpeer(&warden, flags)?;
    resize(&warden, size)?;
    Ok(Ends { warden, program })
}

/// Tells the program that its terminal has another size.
pub(crate) fn resize(warden: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(warden, size)?)
}
