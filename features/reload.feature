Feature: An operator gives a pool another model

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-RELOAD-1 @ORCHD-HTTP-4
  Scenario: What runs finishes, what waits goes on with the new model
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
    And "running" has received 2 tokens
    And alice submits "waiting"
    And the operator gives "words" the model "mock:other" and waits
    Then the answer is 200
    And the answer says:
      | model_ref             | mock:other |
      | reload.phase          | done       |
      | reload.replicas_ready | 1          |
      | ready                 | true       |
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 60 |
      | continuations | 0  |
    And all of them are done
    And "waiting" has the record:
      | model_ref | mock:other |
    And the metrics are:
      | pool_reloads_total{pool_id="words",result="done"} | 1 |

  @ORCHD-RELOAD-1
  Scenario: The same model anew: what runs is cut and goes on
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt      | Once upon a time |
      | max_tokens  | 250              |
      | determinism | strict           |
    And "running" has received 2 tokens
    And the operator gives "words" the model "mock:words" within 10 ms
    Then the answer is 202
    And the answer says:
      | reload.problem | null |
    When the operator gives "words" the model "mock:other" within 10 ms
    Then the answer is 409 CONFLICT
    When the operator drains "words" within 0 ms
    Then the answer is 409 CONFLICT
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 250 |
      | continuations | 1   |
      | exact         | yes |

  @ORCHD-RELOAD-2
  Scenario: A model that does not load leaves the old one
    Given its engine never loads its model at start 2
    And the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And the operator gives "words" the model "mock:other" and waits
    Then the answer is 409 RELOAD_FAILED
    And the message tells "keeps mock:words"
    And the stream "running" ends with end
    When alice submits "next"
    Then all of them are done
    And "next" has the record:
      | model_ref | mock:words |
    And the metrics are:
      | pool_reloads_total{pool_id="words",result="failed"} | 1 |

  @ORCHD-RELOAD-3
  Scenario: What has sent something finishes on its own model, whatever the deadline
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 100              |
    And "running" has received 2 tokens
    And the operator gives "words" the model "mock:other" within 0 ms
    Then the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 100 |
      | continuations | 0   |

  @ORCHD-RELOAD-5
  Scenario: New engines load beside the old ones, and take over
    Given the pool "words" is ready
    When alice submits and streams "running":
      | prompt     | Once upon a time |
      | max_tokens | 300              |
    And "running" has received 2 tokens
    And the operator surges "words" to the model "mock:other" within 60000 ms
    Then the answer is 202
    And the reload of "words" is draining
    When alice submits and streams "next":
      | prompt     | Once upon a time |
      | max_tokens | 5                |
    Then the stream "next" ends with end
    And "next" has the record:
      | model_ref  | mock:other |
      | replica_id | words-0b   |
    And "running" is running
    And the stream "running" ends with end
    And the reload of "words" is done

  @ORCHD-RELOAD-4
  Scenario: The new model stays until the configuration of the pool changes
    Given the pool "words" is ready
    When the operator gives "words" the model "mock:other" and waits
    And the daemon is stopped
    And the daemon starts again
    And alice submits "next"
    Then "next" has the record:
      | model_ref | mock:other |

  @ORCHD-RELOAD-1 @ORCHD-AUTH-2
  Scenario: Only admins reload, and only to what the pool can take
    When alice gives "words" the model "mock:other" within 0 ms
    Then the answer is 403 FORBIDDEN
    When the operator gives "wrods" the model "mock:other" within 0 ms
    Then the answer is 404 NOT_FOUND
    When the operator gives "words" the model "file:/m/a.gguf" within 0 ms
    Then the answer is 400 INVALID_PARAMS
    And the message tells "mock:NAME"
