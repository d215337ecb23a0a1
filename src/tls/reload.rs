//! Something made of files, made again when they change. Looked at by content, once a second at most: that sees every way
//! in which people and machines replace files (renamed, rewritten, a link swung over), on every file system. What cannot
//! be made leaves the old one in place.

use std::{
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher as _},
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use crate::Error;

/// Files are looked at this often at most.
pub const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A file beyond this is refused: it is not meant, and would be read again and again.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where something comes from.
#[derive(Clone)]
pub enum Material {
    /// A file, read again when it changes.
    File(PathBuf),
    /// A text, for ever.
    Text(Vec<u8>),
}

impl Material {
    /// What errors call it.
    pub fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Text(_) => "a PEM text".to_owned(),
        }
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        match self {
            Self::File(path) => read(path),
            Self::Text(text) => Ok(text.clone()),
        }
    }
}

/// What a text says may be a secret.
impl fmt::Debug for Material {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.place())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |reason: String| Error::Unreadable { path: path.to_owned(), reason };
    let file = fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// What a look at the files came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing new, or nothing certain yet.
    Same,
    /// They changed, and what they say is in use from now on.
    Taken,
    /// They changed into something of no use; what was there before stays. Said once for each such change.
    Refused,
}

type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, Error> + Send + Sync;

/// Something made of files, always there.
pub struct Reloading<T> {
    what: String,
    materials: Vec<Material>,
    make: Box<Make<T>>,
    current: ArcSwap<T>,
    state: Mutex<State>,
}

struct State {
    looked_at: Instant,
    /// Somebody reads the files. Nobody holds the lock meanwhile: a disk may hang, and whoever connects asks here first.
    is_looking: bool,
    taken: u64,
    refused: Option<Refusal>,
}

/// Files that are of no use. Two files are seldom replaced in one instant, so that the first look says nothing yet.
struct Refusal {
    content: u64,
    reason: String,
    is_told: bool,
}

impl<T> Reloading<T> {
    /// Makes it for the first time. `what` is what logs call it.
    ///
    /// # Errors
    /// When a file cannot be read, or what they say is of no use.
    pub fn load(
        what: impl Into<String>,
        materials: Vec<Material>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let texts = materials.iter().map(Material::read).collect::<Result<Vec<_>, _>>()?;
        let current = ArcSwap::from_pointee(make(&texts)?);
        let state = State { looked_at: Instant::now(), is_looking: false, taken: content(&texts), refused: None };
        Ok(Self { what: what.into(), materials, make: Box::new(make), current, state: Mutex::new(state) })
    }

    /// The newest good one.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the newest files are not in use; `None` when they are.
    pub fn refused(&self) -> Option<String> {
        let state = self.state();
        state.refused.as_ref().filter(|refusal| refusal.is_told).map(|refusal| refusal.reason.clone())
    }

    /// Looks at the files, unless somebody does so now or did within the last second. Reads files, so that it may block for
    /// as long as the disk does; nothing else here waits for it.
    pub fn look(&self) -> Look {
        let mut state = self.state();
        if !state.is_due() {
            return Look::Same;
        }
        (state.looked_at, state.is_looking) = (Instant::now(), true);
        drop(state);
        self.look_now()
    }

    /// Whether [`Reloading::look`] would look.
    pub(crate) fn is_due(&self) -> bool {
        self.materials.iter().any(|one| matches!(one, Material::File(_))) && self.state().is_due()
    }

    fn look_now(&self) -> Look {
        let read = self.materials.iter().map(Material::read).collect::<Result<Vec<_>, _>>();
        let mut state = self.state();
        state.is_looking = false;
        let (content, made) = match read {
            Ok(texts) => {
                let content = content(&texts);
                if content == state.taken {
                    state.refused = None;
                    return Look::Same;
                }
                if state.refused.as_ref().is_some_and(|refusal| refusal.content == content && refusal.is_told) {
                    return Look::Same;
                }
                (content, (self.make)(&texts))
            }
            Err(error) => (hash(&error.to_string()), Err(error)),
        };
        match made {
            Ok(new) => {
                self.current.store(Arc::new(new));
                (state.taken, state.refused) = (content, None);
                tracing::info!(what = self.what, "files changed: the new ones are in use for new connections");
                Look::Taken
            }
            Err(error) => {
                let seen = state.refused.as_ref().filter(|refusal| refusal.content == content);
                let (seen_before, told_before) = (seen.is_some(), seen.is_some_and(|refusal| refusal.is_told));
                let reason = error.to_string();
                if seen_before && !told_before {
                    tracing::error!(what = self.what, reason, "files changed and are of no use; the old ones go on");
                }
                state.refused = Some(Refusal { content, reason, is_told: seen_before });
                if seen_before && !told_before { Look::Refused } else { Look::Same }
            }
        }
    }

    /// Looks at once, as if a second had gone by.
    #[cfg(test)]
    pub(crate) fn look_at_once(&self) -> Look {
        self.state().is_looking = true;
        self.look_now()
    }
}

impl State {
    fn is_due(&self) -> bool {
        !self.is_looking && self.looked_at.elapsed() >= LOOK_PERIOD
    }
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reloading").field("what", &self.what).field("materials", &self.materials).finish()
    }
}

/// Equal for equal files; nobody who writes them gains from making different ones look equal.
fn content(texts: &[Vec<u8>]) -> u64 {
    hash(texts)
}

fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
