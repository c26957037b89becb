//! `/etc/resolv.conf`, where nothing better runs.
//!
//! The file may be a regular file, a link into another program's directory, or a mount point (containers; `ip
//! netns exec` mounts a namespace's own over the host's). A file or link is replaced as a whole by rename; a
//! mount point cannot be, and *through a link* must not be (the link's directory is the host's, the mount is
//! ours), so it is written in place.
//!
//! Other programs go on writing: a DHCP client that gets its lease after us replaces the file, and whoever
//! owns a link's target changes that. [`ResolvConf::follow`] takes what they wrote for the original from then
//! on. What they put back may be an edit of ours that they had saved: it tells what it was made of
//! (`resolver/edit.rs`).

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::Host;
use super::edit::{Rest, Search, edited, unsearched, without};
use super::elsewhere::Elsewhere;
use super::journal::{Entry, JOURNAL, Original, restore_journal, standing, undo};
use super::text::{names, nameservers};
use crate::dns::Upstream;
use crate::state::{StateError, read_bounded};

/// glibc reads no more lines than make sense; a larger file is not one.
pub(super) const MAX_BYTES: u64 = 64 * 1024;

/// An edit that is ready to be made.
#[derive(Debug)]
pub struct Prepared {
    entry: Entry,
    /// It is made already: an earlier run's, which cannot be undone at present.
    stands: bool,
    journal: PathBuf,
    text: String,
    server: IpAddr,
    search: Search,
    servers: Vec<SocketAddr>,
    elsewhere: Elsewhere,
    lost: Option<Lost>,
}

/// The edited file.
#[derive(Debug)]
pub struct ResolvConf {
    path: PathBuf,
    journal: PathBuf,
    entry: Entry,
    /// Ours.
    server: IpAddr,
    /// Domains that programs search besides those of the file.
    search: Search,
    /// What the host's own servers were read from.
    text: String,
    /// These.
    servers: Vec<SocketAddr>,
    /// What the last look found, if that was news.
    news: Option<(Original, String, Vec<SocketAddr>)>,
    /// Files that name this server are not for us.
    left_to: Option<IpAddr>,
    elsewhere: Elsewhere,
    lost: Option<Lost>,
}

/// Nobody knows what stood in the file: it had our edit from the start, and no journal was there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lost {
    /// What is taken for the original, if there is something.
    instead: Option<PathBuf>,
}

/// What a look at the file came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing new, or nothing that is certain yet: somebody may be in the middle of writing.
    Quiet,
    /// The file is ours as before; behind the link these are the host's own servers now.
    Servers(Upstream),
    /// Somebody else had written the file. It is the original now, with these servers, and the file is ours
    /// again.
    Taken(Upstream),
}

impl ResolvConf {
    /// Looks at the file, which is to name `server`. Restores first what a crashed daemon left. Where that
    /// fails, as on a full disk, and what it left names `server`, that is taken for ours: programs ask
    /// nobody else.
    ///
    /// # Errors
    ///
    /// When the file cannot be read. Nothing was changed then, except by such a restoration.
    pub fn prepare(host: &Host, journal_dir: &Path, server: IpAddr) -> Result<Prepared, ResolvConfError> {
        if let Err(error) = restore_journal(journal_dir) {
            let Some(standing) = Self::standing(host, journal_dir, server) else { return Err(error) };
            tracing::warn!(%error, "an earlier run's edit stands: the servers from before it are used, and it is undone later");
            return Ok(standing);
        }
        let path = host.resolv_conf.clone();
        let elsewhere = Elsewhere::new(&host.run, server);
        let (found, text) = look_at(&path)?;
        let (original, text, lost) = match without(&text, server) {
            None => (found, text, None),
            Some(rest) if says_nothing(&rest) => left_over(found, rest.text, &elsewhere),
            Some(rest) => {
                let (original, text) = before(&path, found, rest, server)?;
                (original, text, None)
            }
        };
        let servers = elsewhere.servers(&text).unwrap_or_else(|| elsewhere.named(&text));
        let journal = journal_dir.join(JOURNAL);
        let search = Search { domains: Vec::new(), of_host: host.domain() };
        let ours = edited(&text, server, &search, &original.was());
        let entry = Entry { path, original, ours, before: None };
        Ok(Prepared { entry, stands: false, journal, text, server, search, servers, elsewhere, lost })
    }

    /// The edit of an earlier run, if it still stands and names `server`.
    fn standing(host: &Host, journal_dir: &Path, server: IpAddr) -> Option<Prepared> {
        let entry = standing(journal_dir).filter(|entry| entry.path == host.resolv_conf)?;
        if !names(&nameservers_of(&entry.path), server) {
            return None;
        }
        let text = match &entry.original {
            Original::Absent => String::new(),
            Original::File { text, .. } | Original::Mounted { text, .. } => text.clone(),
            Original::Link { target } => text_of(&behind(&entry.path, target)).ok()?,
        };
        let elsewhere = Elsewhere::new(&host.run, server);
        let servers = elsewhere.servers(&text).unwrap_or_else(|| elsewhere.named(&text));
        let journal = journal_dir.join(JOURNAL);
        let search = Search { domains: Vec::new(), of_host: host.domain() };
        Some(Prepared { entry, stands: true, journal, text, server, search, servers, elsewhere, lost: None })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The host's own servers.
    pub fn upstream(&self) -> Upstream {
        upstream(&self.servers, self.server)
    }

    /// False when somebody else has changed the file since.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, so that this is not known.
    pub fn is_intact(&self) -> Result<bool, ResolvConfError> {
        self.entry.stands()
    }

    /// From now on a file that names this server is left to whoever wrote it.
    pub fn leave_to(&mut self, server: IpAddr) {
        self.left_to = Some(server);
    }

    /// Whether the file names the server that such files are left to.
    pub fn is_left(&self) -> bool {
        self.left_to.is_some_and(|server| names(&nameservers_of(&self.path), server))
    }

    /// Whether this server was named before the file was ours.
    pub fn stood_for(&self, server: IpAddr) -> bool {
        names(&nameservers(&self.text), server)
    }

    /// Why the file may not come back as it was, if that is so.
    pub fn doubt(&self) -> Option<String> {
        let Lost { instead } = self.lost.as_ref()?;
        let path = self.path.display();
        let now = match instead {
            Some(place) => format!("the servers in {} are used instead", place.display()),
            None => "no other server is known".into(),
        };
        Some(format!(
            "{path} named our server alone when the agent started, left by an earlier run whose journal is gone: {now}; \
             write the host's own DNS servers into {path}, or renew its DHCP lease"
        ))
    }

    /// Looks at the file, and behind the link that it was. What somebody else has written since becomes the
    /// original, once two looks have seen the same, and the file is made ours again.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written, or the journal. The file is then as it was found.
    pub fn follow(&mut self) -> Result<Look, ResolvConfError> {
        let ours = self.entry.stands()?;
        let (found, text) = match &self.entry.original {
            _ if !ours => look_at(&self.path)?,
            Original::Link { target } => (self.entry.original.clone(), text_of(&behind(&self.path, target))?),
            // Nobody else can see what stood there; but whom systemd-resolved asks may change.
            original => (original.clone(), self.text.clone()),
        };
        if !ours && self.left_to.is_some_and(|server| names(&nameservers(&text), server)) {
            self.news = None;
            return Ok(Look::Quiet);
        }
        let (original, text) = self.foreign(found, text)?;
        let servers = self.elsewhere.servers(&text).unwrap_or_else(|| match ours {
            // It is gone for a moment, and its servers are not.
            true => self.servers.clone(),
            false => self.elsewhere.named(&text),
        });
        if ours && text == self.text && servers == self.servers {
            self.news = None;
            return Ok(Look::Quiet);
        }
        let news = Some((original, text, servers));
        if self.news != news {
            self.news = news;
            return Ok(Look::Quiet);
        }
        let Some((original, text, servers)) = self.news.take() else { return Ok(Look::Quiet) };
        if !ours || text != self.text {
            let mut entry = Entry {
                path: self.path.clone(),
                ours: edited(&text, self.server, &self.search, &original.was()),
                original,
                before: ours.then(|| self.entry.ours.clone()),
            };
            entry.make(&self.journal)?;
            // From here on, whoever puts that back has changed the file.
            entry.before = None;
            if text != self.text {
                self.lost = None;
            }
            (self.entry, self.text) = (entry, text);
        }
        self.servers = servers;
        let upstream = self.upstream();
        Ok(if ours { Look::Servers(upstream) } else { Look::Taken(upstream) })
    }

    /// What was found, without what it has of ours: programs that save the file and put it back, or build on
    /// it, saw our edit. One that names nobody else, and does not tell what stood there, says nothing new.
    fn foreign(&self, found: Original, text: String) -> Result<(Original, String), ResolvConfError> {
        let (original, text) = match without(&text, self.server) {
            None => (found, text),
            Some(rest) if says_nothing(&rest) => (self.entry.original.clone(), self.text.clone()),
            Some(rest) => before(&self.path, found, rest, self.server)?,
        };
        // Where the file searched them before it was ours, they are its own.
        let were_own = unsearched(&self.text, &self.search).is_some();
        Ok(match unsearched(&text, &self.search).filter(|_| !were_own) {
            None => (original, text),
            Some(text) => (original.with_text(&text), text),
        })
    }

    /// Puts the original back, unless somebody else has changed the file since.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written. The journal then stays, and `cyphonicd cleanup` or the next
    /// start tries again.
    pub fn restore(&self) -> Result<(), ResolvConfError> {
        undo(&self.entry, &self.journal)
    }
}

impl Prepared {
    /// The host's own servers.
    pub fn upstream(&self) -> Upstream {
        upstream(&self.servers, self.server)
    }

    /// Has programs search these domains before those that they search already.
    #[must_use]
    pub fn searching(mut self, search: &[String]) -> Self {
        self.search.domains = search.to_vec();
        if !self.stands {
            self.entry.ours = edited(&self.text, self.server, &self.search, &self.entry.original.was());
        }
        self
    }

    /// Makes our server the only one. Search domains and options stay.
    pub fn apply(self) -> Result<ResolvConf, ResolvConfError> {
        let Self { entry, stands, journal, text, server, search, servers, elsewhere, lost } = self;
        if !stands {
            entry.make(&journal)?;
        }
        if let Some(Lost { instead }) = &lost {
            tracing::warn!(
                path = %entry.path.display(),
                ?instead,
                "our edit was left behind without its journal: what stood there is not known"
            );
        }
        Ok(ResolvConf {
            path: entry.path.clone(),
            journal,
            entry,
            server,
            search,
            text,
            servers,
            news: None,
            left_to: None,
            elsewhere,
            lost,
        })
    }
}

fn upstream(servers: &[SocketAddr], own: IpAddr) -> Upstream {
    Upstream::new(servers.iter().copied(), SocketAddr::new(own, 53))
}

/// What is taken for the original of a file that names our server and nobody else; `rest` is the rest of it.
fn left_over(found: Original, rest: String, elsewhere: &Elsewhere) -> (Original, String, Option<Lost>) {
    let (original, text, instead) = match (elsewhere.original(), found) {
        (Some((place, text)), Original::File { .. }) => {
            (Original::Link { target: place.clone() }, text, Some(place))
        }
        (Some((place, text)), found) => (found.with_text(&text), text, Some(place)),
        (None, Original::File { .. }) if rest.trim().is_empty() => (Original::Absent, rest, None),
        (None, found) => (found.with_text(&rest), rest, None),
    };
    (original, text, Some(Lost { instead }))
}

/// Whether there is neither a server nor what stood there before.
fn says_nothing(rest: &Rest) -> bool {
    rest.was.is_none() && nameservers(&rest.text).is_empty()
}

/// What stood at this path before it had our edit, and what that says now.
fn before(
    path: &Path,
    found: Original,
    rest: Rest,
    server: IpAddr,
) -> Result<(Original, String), ResolvConfError> {
    let original = found.before(&rest);
    let text = match &original {
        Original::Link { target } if rest.whole => {
            let text = text_of(&behind(path, target))?;
            without(&text, server).map_or(text, |rest| rest.text)
        }
        Original::Absent | Original::File { .. } | Original::Link { .. } | Original::Mounted { .. } => {
            rest.text
        }
    };
    Ok((original, text))
}

/// Where a link at this path leads.
fn behind(path: &Path, target: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(target)
}

fn look_at(path: &Path) -> Result<(Original, String), ResolvConfError> {
    let read = |source| ResolvConfError::io("read", path, source);
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Original::Absent, String::new()));
        }
        Err(error) => return Err(read(error)),
    };
    let text = text_of(path)?;
    let original = match fs::canonicalize(path) {
        Ok(at) if is_mount_point(&at).map_err(read)? => Original::Mounted { text: text.clone(), at },
        _ if meta.is_symlink() => Original::Link { target: fs::read_link(path).map_err(read)? },
        _ => Original::File { text: text.clone(), mode: meta.permissions().mode() & 0o777 },
    };
    Ok((original, text))
}

/// Follows links; a link to nowhere has no text.
fn text_of(path: &Path) -> Result<String, ResolvConfError> {
    let bytes = read_bounded(path, MAX_BYTES)?.unwrap_or_default();
    String::from_utf8(bytes).map_err(|_| ResolvConfError::NotText { path: path.to_owned() })
}

/// proc(5): the fifth field of a line of mountinfo is the mount point, with blanks as `\040`.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    // Namespaces belong to threads. Not to know is no reason for a no: a mount point cannot be replaced.
    let mounts = match fs::read_to_string("/proc/thread-self/mountinfo") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        read => read?,
    };
    let wanted = path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(wanted.as_str())))
}

/// The servers that a resolv.conf file names; none if it cannot be read.
pub(super) fn nameservers_of(path: &Path) -> Vec<SocketAddr> {
    let bytes = read_bounded(path, MAX_BYTES).ok().flatten().unwrap_or_default();
    nameservers(&String::from_utf8_lossy(&bytes))
}

/// Why `/etc/resolv.conf` could not be edited or restored.
#[derive(Debug, thiserror::Error)]
pub enum ResolvConfError {
    /// The file system said no.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// `read`, `write`…
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not UTF-8: no resolver configuration.
    #[error("{} is not text: it is left alone; set `dns: resolver: none` or repair it", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
    },
    /// The journal.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal.
    #[error("cannot write the resolver's journal: {0}")]
    Journal(serde_json::Error),
}

impl ResolvConfError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
