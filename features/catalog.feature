Feature: The catalog knows models, fetches them and says whether they may be used

  Background:
    Given a pool "words" with 1 slot
    And a server of models

  @ORCHD-MODEL-1 @ORCHD-AUTH-2
  Scenario: Entries are for admins
    When alice asks for "/v1/catalog/models"
    Then the answer is 403 FORBIDDEN
    When the operator enters the model "small" that lies there
    Then the answer is 201
    And the answer says:
      | id      | small  |
      | state   | Active |
      | present | false  |
    When the operator enters the model "small" that lies there
    Then the answer is 200
    When the operator enters the model "small" with the reference "other.gguf"
    Then the answer is 409 CONFLICT
    When the operator enters the model "passwords" with the reference "file:/etc/passwd"
    Then the answer is 400 INVALID_PARAMS
    When the operator asks for "/v1/catalog/models?tag=none"
    Then the answer is 200
    And the answer says:
      | models      | []   |
      | next_cursor | null |
    When the operator sends DELETE "/v1/catalog/models/small"
    Then the answer is 204
    When the operator asks for "/v1/catalog/models/small"
    Then the answer is 404 NOT_FOUND

  @ORCHD-MODEL-2 @ORCHD-MODEL-4 @ORCHD-OBS-1
  Scenario: A model is fetched over a connection that breaks, and is right
    Given the server breaks every connection after 300000 bytes
    When the operator has the model "small" fetched, with its digest
    Then the answer is 201
    And the model "small" comes to rest
    And the answer says:
      | present       | true |
      | trusted       | true |
      | fetch_problem | null |
    And its verification is "given"
    And the server sent at most 150 percent of the model
    And the metrics are:
      | catalog_verifications_total{result="done",reason="given",engine="llamacpp"} | 1 |

  @ORCHD-MODEL-2 @ORCHD-MODEL-4
  Scenario: A model with another digest does not appear
    When the operator has the model "small" fetched, with the digest of another
    Then the model "small" comes to rest
    And the answer says:
      | present | false |
    And its problem tells "thrown away"

  @ORCHD-MODEL-2 @ORCHD-DUR-2
  Scenario: A fetch goes on by itself after the daemon was killed, with what had come
    Given the daemon runs as a process of its own
    And the server sends nothing behind the first 1600000 bytes
    When the operator has the model "small" fetched, with its digest
    And the model "small" has 1500000 bytes
    And the daemon is killed
    And the server sends everything
    And the daemon starts again
    Then the model "small" comes to rest
    And its verification is "given"
    And the server sent at most 150 percent of the model

  @ORCHD-MODEL-2
  Scenario: A fetch is called off, and goes on when it is asked for again
    Given the server sends nothing behind the first 1600000 bytes
    When the operator has the model "small" fetched, with its digest
    And the model "small" has 1500000 bytes
    And the operator sends DELETE "/v1/catalog/models/small/fetch"
    Then the answer is 200
    And the model "small" comes to rest
    And the answer says:
      | present      | false |
      | verification | null  |
    When the server sends everything
    And the operator sends POST "/v1/catalog/models/small/fetch"
    Then the answer is 202
    And the model "small" comes to rest
    And its verification is "given"
    And the server sent at most 105 percent of the model

  @ORCHD-MODEL-3
  Scenario: Nothing is asked of a host that is not listed, and nothing at all where fetching is off
    When the operator enters and fetches "small" from "https://models.example/m.gguf"
    Then the answer is 403 FORBIDDEN
    And the message tells "allow_hosts"

  @ORCHD-MODEL-3
  Scenario: The switch
    Given nothing is fetched
    When the operator has the model "small" fetched, with its digest
    Then the answer is 403 FORBIDDEN
    And the message tells "models.fetch.enabled is false"

  @ORCHD-MODEL-4
  Scenario: A file that was damaged is found
    Given the file "local.gguf" in the models folder
    When the operator enters the model "local" with the digest of its file
    And the operator verifies "local"
    Then the model "local" comes to rest
    And its verification is "given"
    When the file "local.gguf" in the models folder is damaged
    And the operator verifies "local"
    Then the model "local" comes to rest
    And its verification is "digest"
    And the answer says:
      | trusted | false |

  @ORCHD-MODEL-5 @ORCHD-OBS-1
  Scenario: A retired model
    Given the file "local.gguf" in the models folder
    When the operator enters the model "local" with the digest of its file
    And the operator retires "local"
    Then the answer is 200
    And the answer says:
      | state | Retired |
    And the metrics are:
      | model_state{model_id="local",state="Retired"} | 1 |
    When the operator takes "local" back
    Then the answer says:
      | state           | Active |
      | retired_from_ms | null   |

  @ORCHD-MODEL-1
  Scenario: The catalog outlives the daemon
    When the operator enters the model "small" that lies there
    And the daemon is stopped
    And the operator asks for "/v1/catalog/models/small"
    Then the answer is 200

  @ORCHD-MODEL-1
  Scenario: An entry keeps what it was told, and is found by it
    When the operator sends POST "/v1/catalog/models" with the body:
      """
      {
        "id": "signed", "model_ref": "hf:org/repo@v2/small.gguf", "tags": ["team:search", "small"], "size_bytes": 1000,
        "references": [{ "kind": "sbom", "uri": "https://models.example/small.spdx.json" }]
      }
      """
    Then the answer is 201
    And the answer says:
      | tags             | ["team:search","small"]                |
      | size_bytes       | 1000                                   |
      | digest           | null                                   |
      | references.0.uri | https://models.example/small.spdx.json |
      | present          | false                                  |
    When the operator asks for "/v1/catalog/models?tag=team:search"
    Then the answer says:
      | models.0.id | signed |
    When the operator enters the model "other" with the reference "https://name:secret@models.example/m.gguf"
    Then the answer is 400 INVALID_PARAMS
    When the operator enters the model "Upper" with the reference "file:m.gguf"
    Then the answer is 400 INVALID_PARAMS

  @ORCHD-MODEL-1 @ORCHD-RELOAD-1
  Scenario: An entry's id names its model in tasks and in reloads
    Given a pool "chat" of llama-server with the file "chat.gguf" and 1 slot
    And the model file "next.gguf"
    And the pool "chat" is ready
    When the operator enters the model "chat-model" with the reference "file:chat.gguf"
    And alice submits "by name":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
      | model_ref  | chat-model       |
    Then the answer is 202
    And "by name" is done
    And "by name" has the record:
      | pool_id | chat |
    When the operator enters the model "next-model" with the reference "file:next.gguf"
    And the operator gives "chat" the model "next-model" and waits
    Then the answer is 200
    And the answer says:
      | model_ref | next-model |

  @ORCHD-MODEL-5
  Scenario: Tasks for a retired model are refused, those that were accepted go on
    Given a pool "chat" of llama-server with the file "chat.gguf" and 1 slot
    And the pool "chat" is ready
    When the operator enters the model "chat-model" with the reference "file:chat.gguf"
    And the operator drains "chat" within 0 ms
    And alice submits "accepted" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 202
    When the operator retires "chat-model"
    And alice submits "refused" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 410 MODEL_DEPRECATED
    When the operator sends POST "/v1/pools/chat/resume"
    Then "accepted" is done
    When alice asks for "/v1/capabilities"
    Then the answer says:
      | models.1.model_ref | file:chat.gguf |
      | models.1.state     | Retired        |
    When the operator takes "chat-model" back
    And alice submits "again" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 202
    And "again" is done

  @ORCHD-MODEL-5
  Scenario: A model is retired after a time
    When the operator enters the model "small" that lies there
    And the operator sends POST "/v1/catalog/models/small/state" with the body:
      """
      {"state": "Retired", "deadline_ms": 60000}
      """
    Then the answer is 200
    And the answer says:
      | state | Active |

  @ORCHD-MODEL-4
  Scenario: Where trust is strict only what was verified is loaded, and the pool says what is missing
    Given a pool "chat" of llama-server with the file "local.gguf" and 1 slot
    And the setting "models.trust" is strict
    And the pool "chat" is unavailable
    When the operator asks for "/v1/pools/chat/health"
    Then the answer says:
      | live             | false |
      | replicas.0.state | circuit_open |
    And the pool's last error tells "strict"
    When alice submits "refused" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 503 POOL_UNAVAILABLE

  @ORCHD-MODEL-4
  Scenario: A file that was found wrong is not loaded as long as it lies there unchanged
    Given a pool "chat" of llama-server with the file "local.gguf" and 1 slot
    And its model is loaded at first use
    When the operator enters the model "local" with the digest of its file
    And the operator verifies "local"
    Then the model "local" comes to rest
    And its verification is "size"
    When alice submits "refused" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the pool "chat" is unavailable
    When the operator asks for "/v1/pools/chat/health"
    Then the pool's last error tells "local"

  @ORCHD-MODEL-2
  Scenario: A pool whose model is being fetched queues its tasks, and runs them once it is there
    Given a pool "chat" of llama-server with the file "unused.gguf" and 1 slot
    And its model lies on the server
    And the server sends nothing behind the first 1600000 bytes
    When alice submits "early" to pool "chat":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 202
    And "early" is queued
    When the server sends everything
    Then "early" is done
