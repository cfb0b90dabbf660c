-- Who is asking: finds the caller of an API key by its SHA-256, names the caller to the scorer, and takes the key away.
-- The virtual host's metadata has callers by digest, the route's says which edition of them that is. REQUIRE_KEY is
-- set by whoever loads this.
-- SHA-256 follows FIPS 180-4, section 6.2; its constants are computed as section 4.2.2 defines them.

local bit = require("bit")
local band, bnot, bor, bxor, lshift, ror, rshift = bit.band, bit.bnot, bit.bor, bit.bxor, bit.lshift, bit.ror, bit.rshift
local tobit, tohex = bit.tobit, bit.tohex
local byte, find, lower, match, sub = string.byte, string.find, string.lower, string.match, string.sub

local LONGEST_KEY = 64
local LONGEST_REQUEST_ID = 128
local LONGEST_AUTHORIZATION = 128 -- of a scheme, spaces and a key: what is longer is not searched
local MOST_REMEMBERED = 1000

local ROUNDS, START = {}, {}
do
  local found, candidate = 0, 2
  while found < 64 do
    local prime = true
    for divisor = 2, math.sqrt(candidate) do
      if candidate % divisor == 0 then
        prime = false
        break
      end
    end
    if prime then
      found = found + 1
      ROUNDS[found] = tobit(math.floor(candidate ^ (1 / 3) % 1 * 2 ^ 32))
      if found <= 8 then
        START[found] = tobit(math.floor(math.sqrt(candidate) % 1 * 2 ^ 32))
      end
    end
    candidate = candidate + 1
  end
end

local words = {}
for place = 1, 64 do
  words[place] = 0
end

local function sha256(text)
  local length = #text
  local padded = text .. "\128" .. string.rep("\0", (55 - length) % 64 + 4)
  local h1, h2, h3, h4 = START[1], START[2], START[3], START[4]
  local h5, h6, h7, h8 = START[5], START[6], START[7], START[8]
  local last = #padded + 4
  for first = 1, last, 64 do
    for place = 1, 16 do
      local at = first + 4 * (place - 1)
      if at + 3 > #padded then
        words[place] = length * 8
      else
        local one, two, three, four = byte(padded, at, at + 3)
        words[place] = bor(lshift(one, 24), lshift(two, 16), lshift(three, 8), four)
      end
    end
    for place = 17, 64 do
      local near, far = words[place - 2], words[place - 15]
      words[place] = tobit(
        words[place - 16]
          + bxor(ror(far, 7), ror(far, 18), rshift(far, 3))
          + words[place - 7]
          + bxor(ror(near, 17), ror(near, 19), rshift(near, 10))
      )
    end
    local a, b, c, d, e, f, g, h = h1, h2, h3, h4, h5, h6, h7, h8
    for place = 1, 64 do
      local t1 = h
        + bxor(ror(e, 6), ror(e, 11), ror(e, 25))
        + bxor(band(e, f), band(bnot(e), g))
        + ROUNDS[place]
        + words[place]
      local t2 = bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c))
      h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
    end
    h1, h2, h3, h4 = tobit(h1 + a), tobit(h2 + b), tobit(h3 + c), tobit(h4 + d)
    h5, h6, h7, h8 = tobit(h5 + e), tobit(h6 + f), tobit(h7 + g), tobit(h8 + h)
  end
  return tohex(h1) .. tohex(h2) .. tohex(h3) .. tohex(h4) .. tohex(h5) .. tohex(h6) .. tohex(h7) .. tohex(h8)
end

-- Reading a metadata object copies all of it, so callers are copied once for each edition, and not for each request.
local callers, edition = {}, nil

local function caller_of(handle, digest)
  local current = handle:metadata():get("edition")
  if current ~= edition then
    callers = {}
    for known, caller in pairs(handle:virtualHost():metadata()) do
      callers[known] = caller
    end
    edition = current
  end
  return callers[digest]
end

-- Digests of keys that were good before, so that the arithmetic is done once and not for every request. Whether a key
-- is good is looked up each time: a revoked one is refused at once.
local digests, remembered = {}, 0

local function digest_of(key)
  return digests[key] or sha256(key)
end

local function remember(key, digest)
  if not digests[key] then
    if remembered >= MOST_REMEMBERED then
      digests, remembered = {}, 0
    end
    digests[key], remembered = digest, remembered + 1
  end
end

local function sane(id)
  return id and #id > 0 and #id <= LONGEST_REQUEST_ID and not find(id, "[^%w%p]")
end

local function key_in(authorization, key)
  if not authorization then
    return key
  end
  if #authorization > LONGEST_AUTHORIZATION then
    return authorization
  end
  if lower(sub(authorization, 1, 7)) == "bearer " then
    return match(authorization, "^%s*(.-)%s*$", 8)
  end
  return key or ""
end

local function refuse(handle, message)
  handle:respond({ [":status"] = "401", ["www-authenticate"] = "Bearer" }, message)
end

local renamed = 0

function envoy_on_request(handle)
  local headers = handle:headers()
  local id = headers:get("x-request-id")
  if not sane(id) then
    renamed = renamed + 1
    local source = sub(id or "", 1, LONGEST_REQUEST_ID) .. handle:timestampString(EnvoyTimestampResolution.MICROSECOND) .. tostring(renamed)
    headers:replace("x-request-id", sub(sha256(source .. tostring(words)), 1, 32))
  end
  local authorization, key = headers:get("authorization"), headers:get("x-api-key")
  if not authorization and not key then
    if REQUIRE_KEY then
      refuse(handle, "This needs an API key: send it as 'authorization: Bearer KEY' or as 'x-api-key: KEY'.")
    end
    return
  end
  local given = key_in(authorization, key)
  local digest = #given <= LONGEST_KEY and digest_of(given)
  local caller = digest and caller_of(handle, digest)
  if not caller then
    refuse(handle, "The API key is not known, or no longer valid.")
    return
  end
  remember(given, digest)
  if authorization then
    headers:remove("authorization")
  end
  if key then
    headers:remove("x-api-key")
  end
  headers:replace("x-contender-caller", caller)
end
