#include "protocol.hpp"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <secp256k1.h>

#include <cmath>
#include <cstring>
#include <memory>

namespace mesh {
namespace {

constexpr std::size_t kResultBytes = 174, kHeaderBytes = 185;

void need(bool condition, const std::string& problem) {
  if (!condition) throw Refused(problem);
}

Bytes big_endian(std::uint64_t number, int width) {
  Bytes out(width, '\0');
  for (int at = width - 1; at >= 0; --at, number >>= 8) out[at] = static_cast<char>(number & 0xff);
  return out;
}

std::uint64_t read(const Bytes& data, std::size_t at, int width) {
  std::uint64_t number = 0;
  for (int i = 0; i < width; ++i) number = number << 8 | static_cast<unsigned char>(data[at + i]);
  return number;
}

Bytes leaf_hash(const Bytes& data) { return sha256(Bytes(1, '\0') + data); }
Bytes node_hash(const Bytes& left, const Bytes& right) { return sha256(Bytes(1, '\1') + left + right); }

// The root that `path` leads to from `leaf` at `index` of a tree of `size` (RFC 9162 section 2.1.3.2).
Bytes root_from_path(Bytes node, std::uint64_t index, std::uint64_t size, const std::vector<Bytes>& path) {
  need(index < size, "the leaf is not in the tree");
  std::uint64_t last = size - 1;
  for (const Bytes& sibling : path) {
    need(sibling.size() == 32, "a hash in the path does not have 32 bytes");
    need(last != 0, "the path is too long");
    if ((index & 1) || index == last) {
      node = node_hash(sibling, node);
      while (!(index & 1) && index != 0) index >>= 1, last >>= 1;
    } else {
      node = node_hash(node, sibling);
    }
    index >>= 1, last >>= 1;
  }
  need(last == 0, "the path is too short");
  return node;
}

Bytes encode_base64(const Bytes& data) {
  Bytes out(4 * ((data.size() + 2) / 3), '\0');
  std::vector<unsigned char> buffer(out.size() + 1);
  EVP_EncodeBlock(buffer.data(), reinterpret_cast<const unsigned char*>(data.data()), static_cast<int>(data.size()));
  std::memcpy(out.data(), buffer.data(), out.size());
  return out;
}

Bytes decode_base64(const std::string& text, const std::string& what) {
  std::vector<unsigned char> buffer(text.size() + 1);
  const int size = text.size() % 4 ? -1 : EVP_DecodeBlock(buffer.data(),
      reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  const std::size_t padding = text.size() < 2 ? 0 : (text.back() == '=') + (text[text.size() - 2] == '=');
  need(size >= static_cast<int>(padding), what + " is not base64");
  const Bytes data(reinterpret_cast<char*>(buffer.data()), size - padding);
  need(encode_base64(data) == text, what + " is not canonical base64");
  return data;
}

// vkey: name+keyhash+base64(0x01 || Ed25519 key); keyhash = SHA-256(name || 0x0A || 0x01 || key)[:4] in hexadecimal.
struct Verifier {
  std::string name;
  Bytes hash, key;

  explicit Verifier(const std::string& vkey) {
    const auto first = vkey.find('+'), second = vkey.find('+', first + 1);
    need(first != std::string::npos && second != std::string::npos, "the verifier key is not name+hash+key");
    name = vkey.substr(0, first);
    const Bytes typed = decode_base64(vkey.substr(second + 1), "the verifier key");
    need(typed.size() == 33 && typed[0] == 1, "the verifier key is not Ed25519");
    hash = sha256(name + "\n" + typed).substr(0, 4);
    need(hex(hash) == vkey.substr(first + 1, second - first - 1), "the verifier key's hash does not match it");
    key = typed.substr(1);
  }

  bool verify(const std::string& text, const Bytes& signature) const {
    const auto bytes = [](const Bytes& data) { return reinterpret_cast<const unsigned char*>(data.data()); };
    std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> raw(
        EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, bytes(key), key.size()), EVP_PKEY_free);
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    return raw && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, raw.get()) == 1 &&
           EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(text), text.size()) == 1;
  }
};

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> found;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = text.find('\n', at);
    need(end != std::string::npos, "the note does not end in a line feed");
    found.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return found;
}

struct Checkpoint {
  std::uint64_t size;
  Bytes root;
};

// The checkpoint in a signed note: text, blank line, lines "— name base64(keyhash || signature)" (c2sp.org/signed-note).
Checkpoint open_checkpoint(const std::string& note, const std::string& vkey, const std::string& chain) {
  const Verifier trusted(vkey);
  const auto at = note.rfind("\n\n");
  need(at != std::string::npos, "the note has no signature block");
  const std::string text = note.substr(0, at + 1), mark = "\u2014 ";
  bool is_signed = false;
  for (const std::string& line : lines(note.substr(at + 2))) {
    const auto space = line.rfind(' ');
    need(line.rfind(mark, 0) == 0 && space >= mark.size(), "the note has a malformed signature line");
    const Bytes signature = decode_base64(line.substr(space + 1), "the note signature");
    if (line.substr(mark.size(), space - mark.size()) != trusted.name || signature.substr(0, 4) != trusted.hash) continue;
    need(trusted.verify(text, signature.substr(4)), "the note signature of " + trusted.name + " is wrong");
    is_signed = true;
  }
  need(is_signed, "the note has no signature of the trusted key");
  const auto rows = lines(text);
  need(rows.size() >= 3, "the checkpoint is not origin, size and root");
  need(rows[0] == chain + "/blocks", "the checkpoint is of " + rows[0] + ", not of " + chain + "/blocks");
  const std::string& size = rows[1];
  need(!size.empty() && size.size() <= 19 && size.find_first_not_of("0123456789") == std::string::npos &&
       (size == "0" || size[0] != '0'), "the checkpoint size is not a number");
  Checkpoint point{std::stoull(size), decode_base64(rows[2], "the checkpoint root")};
  need(point.root.size() == 32, "the checkpoint root does not have 32 bytes");
  return point;
}

const secp256k1_context* curve() {
  static const secp256k1_context* context = secp256k1_context_create(SECP256K1_CONTEXT_SIGN);
  return context;
}

}  // namespace

Bytes sha256(const Bytes& data) {
  Bytes out(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(), reinterpret_cast<unsigned char*>(out.data()));
  return out;
}

Bytes tagged(const std::string& tag, const Bytes& data) { return sha256(sha256(tag) + sha256(tag) + data); }

Bytes digest(const std::string& domain, const std::string& chain, const Bytes& body) {
  return tagged("computemesh.v1/" + domain, sha256(chain) + body);
}

std::string hex(const Bytes& data) {
  std::string text;
  for (unsigned char byte : data) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

Bytes unhex(const std::string& text) {
  need(text.size() % 2 == 0 && text.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos, "not hexadecimal");
  Bytes data;
  for (std::size_t at = 0; at < text.size(); at += 2) data += static_cast<char>(std::stoi(text.substr(at, 2), nullptr, 16));
  return data;
}

Bytes payload_digest(const std::map<std::string, Value>& payload) {
  Bytes out = "\x06" + big_endian(payload.size(), 4);  // std::map has its keys in byte order
  for (const auto& [name, value] : payload) {
    out += big_endian(name.size(), 4) + name;
    if (const double* number = std::get_if<double>(&value)) {
      need(std::isfinite(*number), name + " is not a number");
      const double written = *number == 0 ? 0.0 : *number;
      std::uint64_t bits;
      std::memcpy(&bits, &written, sizeof bits);
      out += "\x03" + big_endian(bits, 8);
    } else {
      const std::string& text = std::get<std::string>(value);
      out += "\x04" + big_endian(text.size(), 4) + text;
    }
  }
  return tagged("computemesh.v1/payload", out);
}

Key::Key(const Bytes& secret) : secret_(secret), public_(33, '\0') {
  secp256k1_pubkey key;
  need(secret.size() == 32 && secp256k1_ec_pubkey_create(curve(), &key,
       reinterpret_cast<const unsigned char*>(secret.data())), "not a private key of 32 bytes");
  std::size_t size = public_.size();
  secp256k1_ec_pubkey_serialize(curve(), reinterpret_cast<unsigned char*>(public_.data()), &size, &key,
                                SECP256K1_EC_COMPRESSED);
}

Bytes Key::sign(const std::string& domain, const std::string& chain, const Bytes& body) const {
  const Bytes message = digest(domain, chain, body);
  secp256k1_ecdsa_signature signature;  // libsecp256k1's are RFC 6979 and low S
  need(secp256k1_ecdsa_sign(curve(), &signature, reinterpret_cast<const unsigned char*>(message.data()),
                            reinterpret_cast<const unsigned char*>(secret_.data()), nullptr, nullptr), "signing failed");
  Bytes out(64, '\0');
  secp256k1_ecdsa_signature_serialize_compact(curve(), reinterpret_cast<unsigned char*>(out.data()), &signature);
  return out;
}

std::string Key::token(const std::string& chain, std::uint64_t expires_ms) const {
  const Bytes body = public_ + big_endian(expires_ms, 8);
  std::string text = encode_base64(body + sign("token", chain, body));
  for (char& letter : text) letter = letter == '+' ? '-' : letter == '/' ? '_' : letter;
  return "cm1." + text.substr(0, text.find('='));
}

Bytes Order::pack() const {
  need(request_id.size() == 16 && customer_key.size() == 33 && market_key.size() == 33, "ids and keys of an order");
  return Bytes(1, '\1') + request_id + customer_key + market_key + sha256(challenge_type) + payload_digest +
         big_endian(reward_units, 8) + big_endian(deadline_ms, 8) + big_endian(priority, 1);
}

Proven verify_inclusion(const Proof& proof, const Bytes& task_id, std::uint32_t job, const std::string& vkey,
                        const std::string& chain) {
  // version | 32 task_id | u32 job | 33 worker_key | 32 result_hash | 32 proof_hash | u64 nonce | 32 authorisation
  const Bytes& result = proof.result;
  need(result.size() == kResultBytes && result[0] == 1, "a result has 174 bytes and version 1");
  need(result.substr(1, 32) == task_id && read(result, 33, 4) == job, "the result is of another job");
  // version | 32 chain | u64 height | 32 previous | u64 time | 32 tx_root | 32 compute_root | 32 state_root | u32 | u32
  const Bytes& header = proof.header;
  need(header.size() == kHeaderBytes && header[0] == 1, "a header has 185 bytes and version 1");
  need(header.substr(1, 32) == sha256(chain), "the block is of another chain");
  const std::uint64_t height = read(header, 33, 8);
  need(root_from_path(leaf_hash(result), proof.leaf_index, read(header, 181, 4), proof.compute_path) ==
       header.substr(113, 32), "the result is not under the block's compute root");
  const Checkpoint point = open_checkpoint(proof.note, vkey, chain);
  need(root_from_path(leaf_hash(header), height, point.size, proof.header_path) == point.root,
       "the block is not in the checkpoint's tree");
  return {result.substr(70, 32), height, point.size};
}

}  // namespace mesh
