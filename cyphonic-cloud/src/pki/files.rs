//! Keys and certificates on disk: PEM, keys readable by their owner only, and never overwritten.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::PkiError;

/// Largest file read: keys and chains are a few kilobytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// A service's certificate chain and key as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFiles {
    /// PEM: the leaf, then the services' authority.
    pub certificate: PathBuf,
    /// PEM: PKCS #8.
    pub key: PathBuf,
}

/// Reads a PEM file of at least one certificate.
///
/// # Errors
/// If it cannot be read or holds none.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let pem = read(path)?;
    let content =
        |reason: String| PkiError::Content { path: path.to_owned(), expected: "certificate in PEM", reason };
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(error.to_string()))?;
    if certificates.is_empty() {
        return Err(content("there is no BEGIN CERTIFICATE line".to_owned()));
    }
    Ok(certificates)
}

/// Reads a private key (PEM, PKCS #8).
///
/// # Errors
/// If it cannot be read or holds none.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    let pem = read(path)?;
    PrivatePkcs8KeyDer::from_pem_slice(&pem).map(PrivateKeyDer::from).map_err(|error| PkiError::Content {
        path: path.to_owned(),
        expected: "private key in PEM",
        reason: error.to_string(),
    })
}

/// Writes a new file with certificates.
///
/// # Errors
/// If it exists or cannot be written.
pub fn write_certificates(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<(), PkiError> {
    write_new(path, text(certificates).as_bytes(), 0o644)
}

/// Puts certificates in the place of those in a file, whole or not at all.
///
/// # Errors
/// If they cannot be written; the old ones stand then.
pub fn replace_certificates(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<(), PkiError> {
    let fresh = path.with_extension("new");
    let folder = hold_folder(parent(path));
    let folder = folder.map_err(|source| PkiError::Write { path: path.to_owned(), source })?;
    // What an earlier attempt left.
    match std::fs::remove_file(&fresh) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            return Err(PkiError::Write { path: fresh, source });
        }
        Ok(()) | Err(_) => {}
    }
    write_new(&fresh, text(certificates).as_bytes(), 0o644)?;
    let replace = || {
        std::fs::rename(&fresh, path)?;
        folder.sync_all()
    };
    replace().map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

/// Holds a folder of certificates as it is, for as long as the answer lives: services, whoever renews by hand
/// and backups may come at once.
///
/// # Errors
/// If it cannot be opened or locked.
pub fn hold_folder(folder: &Path) -> std::io::Result<File> {
    let folder = File::open(folder)?;
    folder.lock()?;
    Ok(folder)
}

fn text(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()))).collect()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a new file that only its owner can read.
///
/// # Errors
/// If it exists or cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<(), PkiError> {
    write_new(path, text.as_bytes(), 0o600)
}

/// Writes a new file, and its name, through to the disk.
///
/// # Errors
/// If it exists (it is left untouched) or cannot be written.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        sync_folder_of(path)
    };
    write().map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

/// Brings the names in the folder of a file to the disk.
///
/// # Errors
/// If the disk does not take them.
pub fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// Whether a private key is that of a certificate.
pub fn is_key_of(key: &PrivateKeyDer<'_>, certificate: &[u8]) -> bool {
    let pair = KeyPair::from_der_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256);
    pair.is_ok_and(|pair| public_key_of(certificate) == Some(pair.subject_public_key_info()))
}

/// The subject public key info of a certificate, if it is one.
pub(super) fn public_key_of(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    let size = std::fs::metadata(path).map(|metadata| metadata.len());
    let content = match size {
        Ok(size) if size > MAX_FILE_BYTES => Err(std::io::Error::new(
            ErrorKind::FileTooLarge,
            "the file is too large to be a key or certificate",
        )),
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    content.map(Zeroizing::new).map_err(|source| PkiError::Read { path: path.to_owned(), source })
}
